// A module of CPython written in C: functions of its own compute, wait and call back. What it needs of Python.h, which may not be
// installed, is part of the stable ABI and the same in each version.
#include <stddef.h>
#include <time.h>

typedef struct object PyObject;
typedef struct {
    const char *name;
    PyObject *(*function)(PyObject *, PyObject *);
    int flags;
    const char *doc;
} PyMethodDef;
typedef struct {
    struct {
        ptrdiff_t references;
        void *type;
        void *init;
        ptrdiff_t index;
        PyObject *copy;
    } base;
    const char *name, *doc;
    ptrdiff_t size;
    PyMethodDef *methods;
    void *slots, *traverse, *clear, *release;
} PyModuleDef;
enum { ONE_ARGUMENT = 8, ABI = 3 };

extern PyObject *PyModule_Create2(PyModuleDef *, int);
extern PyObject *PyFloat_FromDouble(double);
extern double PyFloat_AsDouble(PyObject *);
extern PyObject *PyObject_CallObject(PyObject *, PyObject *);
extern void Py_DecRef(PyObject *);
extern void *PyEval_SaveThread(void);
extern void PyEval_RestoreThread(void *);

#define STAY() __asm__ volatile("" ::: "memory")
#define FRAME __attribute__((noinline, noclone))

static volatile unsigned long sink;

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

FRAME static double wait_for_rows(double seconds) {
    double begin = now(CLOCK_MONOTONIC);
    struct timespec pause = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&pause, NULL);
    STAY();
    return now(CLOCK_MONOTONIC) - begin;
}

FRAME static double parse_rows(double seconds) {
    double begin = now(CLOCK_THREAD_CPUTIME_ID);
    while (now(CLOCK_THREAD_CPUTIME_ID) - begin < seconds)
        for (unsigned long i = 0; i < 1000000; i++) sink = sink * 31 + i;
    STAY();
    return now(CLOCK_THREAD_CPUTIME_ID) - begin;
}

// Others may run meanwhile, as modules do that wait.
static PyObject *load(PyObject *self, PyObject *seconds) {
    double length = PyFloat_AsDouble(seconds);
    void *state = PyEval_SaveThread();
    length = wait_for_rows(length);
    PyEval_RestoreThread(state);
    return PyFloat_FromDouble(length);
}

static PyObject *parse(PyObject *self, PyObject *seconds) {
    return PyFloat_FromDouble(parse_rows(PyFloat_AsDouble(seconds)));
}

static PyObject *each(PyObject *self, PyObject *function) {
    for (int i = 0; i < 99; i++) {
        PyObject *result = PyObject_CallObject(function, NULL);
        if (!result) return NULL;
        Py_DecRef(result);
    }
    return PyObject_CallObject(function, NULL);
}

static PyMethodDef methods[] = {
    {"load", load, ONE_ARGUMENT, NULL},
    {"parse", parse, ONE_ARGUMENT, NULL},
    {"each", each, ONE_ARGUMENT, NULL},
    {NULL, NULL, 0, NULL},
};
static PyModuleDef module = {{1, NULL, NULL, 0, NULL}, "native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyObject *PyInit_native(void) {
    return PyModule_Create2(&module, ABI);
}
