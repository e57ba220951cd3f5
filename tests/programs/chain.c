// A program whose stacks are known: main calls a shape, which gets to `first`, `second`, `third` and `leaf` in its own way;
// `leaf` does one kind of work until its time is over. Usage: chain SHAPE WORK SECONDS [LIBRARY]
//
// It talks with the test as tests/src/workloads/gate.rs does.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <alloca.h>
#include <arpa/inet.h>
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

// After a call, so that no compiler makes a jump of it.
#define STAY() __asm__ volatile("" ::: "memory")
#define FRAME __attribute__((noinline, noclone))

static const char *work;
static double seconds;
static volatile unsigned long sink;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void spin(unsigned long turns) {
    for (unsigned long i = 0; i < turns; i++) sink = sink * 31 + i;
}

FRAME void leaf_cpu(double end) {
    while (now() < end)
        for (unsigned long i = 0; i < 10000000; i++) sink = sink * 31 + i;
    STAY();
}

FRAME void leaf_libc(double end) {
    static char from[1 << 16], to[1 << 16];
    while (now() < end)
        for (int i = 0; i < 1000; i++) {
            memmove(to, from, sizeof to - (size_t)(i & 7));
            sink += (unsigned long)to[i];
        }
    STAY();
}

FRAME void leaf_vdso(double end) {
    struct timespec t;
    do {
        for (int i = 0; i < 10000; i++) clock_gettime(CLOCK_MONOTONIC, &t);
    } while ((double)t.tv_sec + (double)t.tv_nsec / 1e9 < end);
    STAY();
}

// Under another name, or the compiler does what it does itself: each call goes through the procedure linkage table.
#ifdef __cplusplus
extern "C"
#endif
int absolute(int) __asm__("abs");

FRAME void leaf_plt(double end) {
    while (now() < end)
        for (int i = 0; i < 100000; i++) sink += (unsigned long)absolute(i);
    STAY();
}

FRAME void leaf_sleep(double end) {
    while (now() < end) usleep(2000);
    STAY();
}

FRAME void leaf_pipe(double end) {
    int fds[2];
    char byte;
    if (pipe(fds)) abort();
    while (now() < end) {
        // Nobody writes: the alarm of `main` ends each wait.
        if (read(fds[0], &byte, 1) >= 0) abort();
    }
    STAY();
}

FRAME void leaf_lock(double end) {
    while (now() < end) {
        pthread_mutex_lock(&mutex);
        pthread_mutex_unlock(&mutex);
    }
    STAY();
}

FRAME void leaf_fault(double end) {
    const size_t length = 128 << 20;
    char *memory = (char *)mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) abort();
    madvise(memory, length, MADV_NOHUGEPAGE);
    for (size_t at = 0; at < length; at += 4096) memory[at] = 1;
    while (now() < end) poll(NULL, 0, 100);
    STAY();
}

FRAME void leaf_syscall(double end) {
    while (now() < end)
        for (int i = 0; i < 1000; i++) sink += (unsigned long)getppid();
    STAY();
}

FRAME void leaf_connect(double end) {
    struct linger none = {1, 0};
    struct sockaddr_in to;
    socklen_t length = sizeof to;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&to, sizeof to) || listen(listener, 64)) abort();
    if (getsockname(listener, (struct sockaddr *)&to, &length)) abort();
    while (now() < end) {
        int out = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(out, (struct sockaddr *)&to, sizeof to)) abort();
        int in = accept(listener, NULL, NULL);
        // A reset leaves no port in TIME_WAIT.
        if (setsockopt(out, SOL_SOCKET, SO_LINGER, &none, sizeof none)) abort();
        close(out);
        close(in);
        usleep(1000);
    }
    close(listener);
    STAY();
}

static int told(int patience) {
    char byte = 0;
    struct pollfd wait = {0, POLLIN, 0};
    if (poll(&wait, 1, patience) <= 0) return 0;
    do
        if (read(0, &byte, 1) != 1) exit(1);
    while (byte != '\n');
    return 1;
}

static void say(const char *step) {
    printf("{\"step\":\"%s\",\"pid\":%d,\"facts\":{}}\n", step, (int)getpid());
    fflush(stdout);
}

// Spins until the test says that it has seen whole stacks of this function, which tell where it is in the run.
#define WARM(name)                                    \
    FRAME void name(double unused) {                  \
        (void)unused;                                 \
        say("warming");                               \
        do                                            \
            for (int i = 0; i < 100; i++) spin(100000); \
        while (!told(0));                             \
        /* Not the same code as another one's, or the compiler makes one function of both. */ \
        __asm__ volatile("# " #name ::: "memory");    \
    }
WARM(warm_up)
WARM(warm_again)
WARM(warm_other)

FRAME void warm_before_exec(double end) {
    while (now() < end) spin(100000);
    STAY();
}

static void (*leaf_of(void))(double) {
    static const struct {
        const char *name;
        void (*leaf)(double);
    } all[] = {
        {"cpu", leaf_cpu},     {"libc", leaf_libc}, {"vdso", leaf_vdso},   {"plt", leaf_plt},
        {"sleep", leaf_sleep}, {"pipe", leaf_pipe}, {"lock", leaf_lock},   {"fault", leaf_fault},
        {"syscall", leaf_syscall}, {"connect", leaf_connect},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(all[i].name, work)) return all[i].leaf;
    abort();
}

FRAME void third(double end) {
    volatile char room[200];
    room[0] = 1;
    leaf_of()(end);
    sink += (unsigned long)room[0];
    STAY();
}

FRAME void second(double end, int a, int b, int c, int d, int e, int f, int g) {
    third(end);
    sink += (unsigned long)(a + b + c + d + e + f + g);
    STAY();
}

FRAME void first(double end) {
    second(end, 1, 2, 3, 4, 5, 6, 7);
    STAY();
}

FRAME void plain(double end) {
    first(end);
    STAY();
}

FRAME void recurse(double end, int depth) {
    volatile unsigned long kept = sink;
    if (depth > 1)
        recurse(end, depth - 1);
    else
        first(end);
    sink += kept;
    STAY();
}

FRAME void deep(double end) {
    recurse(end, 100);
    STAY();
}

// As deep as a stack can be and still be whole: with the leaf and what that calls, 127 frames.
FRAME void dive(double end, int depth) {
    volatile unsigned long kept = sink;
    if (depth > 1)
        dive(end, depth - 1);
    else
        leaf_of()(end);
    sink += kept;
    STAY();
}

FRAME void deepest(double end) {
    dive(end, 120);
    STAY();
}

// Deeper than that.
FRAME void bottomless(double end) {
    dive(end, 200);
    STAY();
}

FRAME void with_alloca(double end) {
    size_t length = 100 + (sink & 1023);
    volatile char *room = (volatile char *)alloca(length);
    room[length - 1] = 1;
    first(end);
    sink += (unsigned long)room[length - 1];
    STAY();
}

static jmp_buf back;

FRAME void jump_away(void) { longjmp(back, 1); }

FRAME void with_setjmp(double end) {
    if (!setjmp(back)) jump_away();
    first(end);
    STAY();
}

static double handler_end;

static void on_signal(int signal) {
    (void)signal;
    first(handler_end);
    STAY();
}

FRAME void raised(void) {
    // The signal arrives in the middle of the instructions that follow a call.
    raise(SIGUSR1);
    STAY();
}

FRAME void in_handler(double end) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    handler_end = end;
    sigaction(SIGUSR1, &action, NULL);
    raised();
    STAY();
}

// On a stack of its own.
FRAME void on_other_stack(double end) {
    stack_t other;
    struct sigaction action;
    memset(&other, 0, sizeof other);
    other.ss_size = 1 << 20;
    other.ss_sp = malloc(other.ss_size);
    sigaltstack(&other, NULL);
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_ONSTACK;
    handler_end = end;
    sigaction(SIGUSR1, &action, NULL);
    raised();
    STAY();
}

#if defined(__x86_64__)
// The trap is the very first instruction of its function. The byte before it is another function's, whose frame is so large that
// a walk which took the address for that of a return would get lost.
__asm__(".text\n"
        ".type before_trapped, @function\n"
        "before_trapped:\n"
        ".cfi_startproc\n"
        ".cfi_def_cfa_offset 4096\n"
        "nop\n"
        ".cfi_endproc\n"
        ".size before_trapped, .-before_trapped\n"
        ".globl trapped\n"
        ".type trapped, @function\n"
        "trapped:\n"
        ".cfi_startproc\n"
        "ud2\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size trapped, .-trapped\n");
void trapped(void) __asm__("trapped");

static void on_trap(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)info;
    first(handler_end);
    // Past the trap, which has two bytes.
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
    STAY();
}

FRAME void with_trap(double end) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_trap;
    action.sa_flags = SA_SIGINFO;
    handler_end = end;
    sigaction(SIGILL, &action, NULL);
    trapped();
    STAY();
}
#endif

static double sort_end;

static int compare(const void *a, const void *b) {
    if (now() < sort_end) first(sort_end);
    return *(const int *)a - *(const int *)b;
}

// The C library calls us back.
FRAME void sorted(double end) {
    int numbers[2] = {2, 1};
    sort_end = end;
    qsort(numbers, 2, sizeof *numbers, compare);
    sink += (unsigned long)numbers[0];
    STAY();
}

static void *thread(void *end) {
    first(*(double *)end);
    STAY();
    return NULL;
}

FRAME void threaded(double end) {
    pthread_t id;
    if (pthread_create(&id, NULL, thread, &end)) abort();
    pthread_join(id, NULL);
    STAY();
}

static const char *library;

FRAME void loaded(double end) {
#ifdef STATIC
    (void)end;
    abort();
#else
    void *handle = dlopen(library, RTLD_NOW);
    if (!handle) abort();
    void (*through)(void (*)(double), double) = (void (*)(void (*)(double), double))dlsym(handle, "through");
    if (!through) abort();
    // Until the agent has seen the new library.
    end -= now();
    through(warm_again, 0);
    through(first, now() + end);
    STAY();
    dlclose(handle);
#endif
}

// Another library in the place of the first.
FRAME void loaded_again(double end) {
#ifdef STATIC
    (void)end;
    abort();
#else
    void *handle = dlopen(library, RTLD_NOW);
    if (!handle) abort();
    void (*through)(void (*)(double), double) = (void (*)(void (*)(double), double))dlsym(handle, "through");
    if (!through) abort();
    end -= now();
    through(warm_again, 0);
    dlclose(handle);
    // The same functions with other frames: libother.so.
    static char other[4096];
    snprintf(other, sizeof other, "%.*s/libother.so", (int)(strrchr(library, '/') - library), library);
    handle = dlopen(other, RTLD_NOW);
    if (!handle) abort();
    through = (void (*)(void (*)(double), double))dlsym(handle, "through");
    if (!through) abort();
    through(warm_other, 0);
    through(first, now() + end);
    STAY();
    dlclose(handle);
#endif
}

// Becomes another program (`library`), which does the work.
static void become(char **arguments) {
    char *next[] = {arguments[4], (char *)"plain", arguments[2], arguments[3], NULL};
    warm_before_exec(now() + 2);
    execv(arguments[4], next);
    abort();
}

static void tick(int signal) { (void)signal; }

// Keeps the mutex most of the time.
static void *holder(void *unused) {
    (void)unused;
    for (;;) {
        pthread_mutex_lock(&mutex);
        usleep(3000);
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

static void prepare(void) {
    pthread_t id;
    if (!strcmp(work, "lock") && pthread_create(&id, NULL, holder, NULL)) abort();
    if (!strcmp(work, "pipe")) {
        struct sigaction action;
        struct sigevent event;
        struct itimerspec every = {{0, 5000000}, {0, 5000000}};
        timer_t timer;
        memset(&action, 0, sizeof action);
        memset(&event, 0, sizeof event);
        action.sa_handler = tick;
        sigaction(SIGALRM, &action, NULL);
        event.sigev_notify = SIGEV_SIGNAL;
        event.sigev_signo = SIGALRM;
        if (timer_create(CLOCK_MONOTONIC, &event, &timer)) abort();
        timer_settime(timer, 0, &every, NULL);
    }
}

int main(int count, char **arguments) {
    static const struct {
        const char *name;
        void (*shape)(double);
    } all[] = {
        {"plain", plain},       {"deep", deep},         {"deepest", deepest},
        {"bottomless", bottomless},
        {"alloca", with_alloca}, {"setjmp", with_setjmp},
        {"signal", in_handler}, {"altstack", on_other_stack}, {"qsort", sorted}, {"thread", threaded},
        {"dlopen", loaded},     {"dlclose", loaded_again},
#if defined(__x86_64__)
        {"trap", with_trap},
#endif
    };
    if (count < 4) return 2;
    const char *shape = arguments[1];
    work = arguments[2];
    seconds = atof(arguments[3]);
    library = count > 4 ? arguments[4] : NULL;
    if (!strcmp(shape, "exec")) become(arguments);
    say("ready");
    while (!told(-1));
    warm_up(0);
    prepare();
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(all[i].name, shape)) all[i].shape(now() + seconds);
    printf("{\"step\":\"truth\",\"pid\":%d}\n", (int)getpid());
    return 0;
}
