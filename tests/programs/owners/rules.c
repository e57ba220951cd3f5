// Functions that wait or compute for others, each called by one of its own, and say for how long: rules about owners. Compiled in three
// parts: with -DLIBRARY the shared library, with -DGENERATED a source file of another name, else the program.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define STAY() __asm__ volatile("" ::: "memory")
#define FRAME __attribute__((noinline, noclone))

void library_pause(void);
void generated_pause(void);

// No function of its own.
#define NAP()                                    \
    do {                                         \
        struct timespec tenth = {0, 100000000};  \
        nanosleep(&tenth, NULL);                 \
    } while (0)

#if defined(LIBRARY)
FRAME void library_pause(void) {
    NAP();
    STAY();
}
#elif defined(GENERATED)
FRAME void generated_pause(void) {
    NAP();
    STAY();
}
#else
FRAME void middleware_pause(void) {
    NAP();
    STAY();
}

FRAME void own_pause(void) {
    usleep(100000);
    STAY();
}

static volatile unsigned long sink;

static double used(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

#define CALLS(caller, callee)                   \
    FRAME double caller(void) {                 \
        double begin = now();                   \
        for (int i = 0; i < 10; i++) callee();  \
        STAY();                                 \
        return now() - begin;                   \
    }
CALLS(calls_library, library_pause)
CALLS(calls_generated, generated_pause)
CALLS(calls_middleware, middleware_pause)
CALLS(calls_own, own_pause)

FRAME double compute(double seconds) {
    double begin = used();
    while (used() - begin < seconds)
        for (unsigned long i = 0; i < 1000000; i++) sink = sink * 31 + i;
    STAY();
    return used() - begin;
}

// Threads that have nothing but a function of the C library: they look for the end of a long text.
static double search(double seconds) {
    size_t length = 64 << 20;
    char *text = malloc(length);
    if (!text) abort();
    memset(text, 'x', length);
    text[length - 1] = 0;
    double begin = used();
    while (used() - begin < seconds) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, (void *(*)(void *))strlen, text)) abort();
        pthread_join(thread, NULL);
    }
    return used() - begin;
}

static void step(const char *name, const char *facts) {
    printf("{\"step\":\"%s\",\"pid\":%d,\"facts\":{%s}}\n", name, getpid(), facts);
    fflush(stdout);
    if (getchar() == EOF) exit(0);
}

int main(void) {
    char facts[400];
    step("ready", "");
    compute(0.5);
    step("warm", "");
    double computed = compute(1);
    snprintf(facts, sizeof facts, "\"compute\":%f,\"search\":%f", computed, search(0.7));
    step("computed", facts);
    for (;;) {
        double library = calls_library(), generated = calls_generated(), middleware = calls_middleware(), own = calls_own();
        const char *form = "\"library\":%f,\"generated\":%f,\"middleware\":%f,\"own\":%f";
        snprintf(facts, sizeof facts, form, library, generated, middleware, own);
        step("waited", facts);
    }
}
#endif
