// Runs BPF programs on stacks of known depth, and prints what they took: depth NOTHING HELPER WALK FRAMES...
//
// The first three arguments are descriptors of programs that `tieback stack-cost` loaded. A line of output has the frames asked
// for, those that the helper and the walk found, and nanoseconds a run of each of the three. Must be built with frame pointers,
// which the helper needs.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PROG_TEST_RUN = 10, ROUNDS = 60, TURNS = 2000 };

// The part of `union bpf_attr` that BPF_PROG_TEST_RUN reads (linux/bpf.h).
struct test_run {
    uint32_t prog_fd, retval, data_size_in, data_size_out;
    uint64_t data_in, data_out;
    uint32_t repeat, duration, ctx_size_in, ctx_size_out;
    uint64_t ctx_in, ctx_out;
    uint32_t flags, cpu, batch_size, pad;
};

static int fds[3];
static unsigned asked;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

// Without a function of the C library, which keeps no frame pointer.
static inline __attribute__((always_inline)) unsigned once(int fd) {
    struct test_run attr;
    memset(&attr, 0, sizeof attr);
    attr.prog_fd = (uint32_t)fd;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"((long)SYS_bpf), "D"((long)PROG_TEST_RUN), "S"(&attr), "d"(sizeof attr)
                     : "rcx", "r11", "memory");
    if (result != 0) {
        fprintf(stderr, "BPF_PROG_TEST_RUN: %s\n", strerror((int)-result));
        exit(1);
    }
    return attr.retval;
}

static __attribute__((noinline)) unsigned measure(unsigned depth) {
    unsigned frames[3];
    for (int round = 0; round < (depth ? ROUNDS : 1); round++) {
        double ns[3];
        for (int at = 0; at < 3; at++) {
            int program = (round + at) % 3;
            uint64_t began = now();
            for (int turn = 0; turn < TURNS; turn++) frames[program] = once(fds[program]);
            ns[program] = (double)(now() - began) / TURNS;
        }
        if (depth) printf("%u %u %u %.1f %.1f %.1f\n", depth, frames[1], frames[2], ns[0], ns[1], ns[2]);
    }
    return frames[2];
}

static __attribute__((noinline)) unsigned recurse(unsigned more, unsigned depth) {
    unsigned frames = more ? recurse(more - 1, depth) : measure(depth);
    __asm__ volatile("" ::: "memory");
    return frames;
}

int main(int count, char **arguments) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    for (int i = 0; i < 3; i++) fds[i] = atoi(arguments[1 + i]);
    if (getchar() == EOF) return 1;
    // One frame is `recurse`.
    unsigned least = recurse(0, 0);
    if (least == 0) {
        fputs("the stack could not be walked to its end\n", stderr);
        return 1;
    }
    for (int i = 4; i < count; i++) {
        asked = (unsigned)atoi(arguments[i]);
        if (asked < least) {
            fprintf(stderr, "no stack is less than %u deep\n", least);
            return 1;
        }
        recurse(asked - least, asked);
    }
    return 0;
}
