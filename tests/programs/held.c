// A library that holds a program before its `main`, whatever it is: preloaded (LD_PRELOAD), it takes the place of the C
// library's start function, after all libraries of the program have been loaded. The program then does nothing but a little
// work of ours ten times a second, and its stack begins in its own start code.
#define _GNU_SOURCE
#include <signal.h>
#include <time.h>

static volatile unsigned long result;

__attribute__((noinline)) static void work(void) {
    for (unsigned long turn = 0; turn < 20000; turn++) result += turn * turn;
}

int __libc_start_main(void *main, int count, char **arguments, void *begin, void *end, void *last, void *stack) {
    (void)main, (void)count, (void)arguments, (void)begin, (void)end, (void)last, (void)stack;
    signal(SIGTERM, SIG_DFL);
    for (;;) {
        work();
        nanosleep(&(struct timespec){.tv_nsec = 100 * 1000 * 1000}, NULL);
    }
}
