// Goes to sleep as soon as it runs, for the given milliseconds, and ends: early sleep|park MILLISECONDS
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

__attribute__((noinline)) void doze(struct timespec *length) {
    clock_nanosleep(CLOCK_MONOTONIC, 0, length, 0);
}

// As runtimes do that make the call themselves: what it waits for is only in its callers.
__attribute__((noinline)) void park_for_work(struct timespec *length) {
    static int word;
    while (syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, length, 0, 0) && errno == EINTR) {
    }
}

__attribute__((noinline)) void serve(int park, struct timespec *length) {
    if (park) park_for_work(length);
    else doze(length);
}

int main(int count, char **arguments) {
    if (count != 3) return 1;
    long milliseconds = strtol(arguments[2], 0, 10);
    struct timespec length = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    serve(!strcmp(arguments[1], "park"), &length);
    return 0;
}
