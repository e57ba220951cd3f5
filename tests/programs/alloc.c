// Allocates in known functions, so much and for so long: alloc SECONDS BATCH PAUSE_US
// Reads a line, then allocates for SECONDS in batches of BATCH rounds with pauses between them, and tells what it has allocated
// since its start and what lives; again until its input ends.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __cplusplus
#include <new>
#define ALLOCATE(size) ::operator new(size)
#define RELEASE(pointer) ::operator delete(pointer)
extern "C" {
#else
#define ALLOCATE(size) malloc(size)
#define RELEASE(pointer) free(pointer)
#endif

enum { SMALL, MIDDLE, ZEROED, GROWN, ALIGNED, LEAK, CACHE, CHURN, KINDS };
static const char *names[KINDS] = {"small", "middle", "zeroed", "grown", "aligned", "leak", "cache", "churn"};
static unsigned long long bytes[KINDS], objects[KINDS], lives[KINDS];
static void *volatile sink;

// Of what is never freed: when the first object came at the earliest and the last one at the latest, and for the means of the times
// before and after each call their sums, since the program began; with the squares of those before.
static struct {
    double first, last, before, after, squares;
} born[KINDS];
static double began;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static double since(void) { return seconds() - began; }

// An object that stays was allocated after `before`.
static void stays(int kind, double before) {
    double after = since();
    if (!objects[kind]) born[kind].first = before;
    born[kind].last = after;
    born[kind].before += before;
    born[kind].after += after;
    born[kind].squares += before * before;
}

static void count(int kind, unsigned long long size) {
    bytes[kind] += size;
    objects[kind]++;
}

__attribute__((noinline)) void small(void) {
    sink = ALLOCATE(48);
    RELEASE(sink);
    count(SMALL, 48);
}

__attribute__((noinline)) void middle(void) {
    sink = ALLOCATE(1000);
    RELEASE(sink);
    count(MIDDLE, 1000);
}

__attribute__((noinline)) void zeroed(void) {
    sink = calloc(10, 200);
    free(sink);
    count(ZEROED, 2000);
}

__attribute__((noinline)) void grown(void) {
    sink = malloc(100);
    count(GROWN, 100);
    sink = realloc(sink, 3000);
    count(GROWN, 3000);
    sink = realloc(sink, 0);
    sink = realloc(0, 500);
    count(GROWN, 500);
    free(sink);
}

__attribute__((noinline)) void aligned(void) {
    void *at;
    if (posix_memalign(&at, 64, 600) == 0) {
        sink = at;
        free(at);
        count(ALIGNED, 600);
    }
    if (posix_memalign(&at, 16, 200) == 0) {
        sink = at;
        free(at);
        count(ALIGNED, 200);
    }
}

__attribute__((noinline)) void leak(void) {
    double before = since();
    sink = ALLOCATE(700);
    stays(LEAK, before);
    count(LEAK, 700);
    lives[LEAK] += 700;
}

// Fills and stops.
__attribute__((noinline)) void cache(void) {
    if (objects[CACHE] < 300) {
        double before = since();
        sink = ALLOCATE(4096);
        stays(CACHE, before);
        count(CACHE, 4096);
        lives[CACHE] += 4096;
    }
}

// A steady coming and going: each is freed when a thousand more have come, by another thread every other time.
static void *ring[1000];
static void *freed_elsewhere;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static void *other(void *unused) {
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!freed_elsewhere) pthread_cond_wait(&changed, &lock);
        RELEASE(freed_elsewhere);
        freed_elsewhere = 0;
        pthread_cond_signal(&changed);
    }
    return unused;
}

__attribute__((noinline)) void churn(void) {
    unsigned long at = objects[CHURN] % 1000;
    void *old = ring[at];
    if (old && at % 64 == 0) {
        pthread_mutex_lock(&lock);
        freed_elsewhere = old;
        pthread_cond_signal(&changed);
        while (freed_elsewhere) pthread_cond_wait(&changed, &lock);
        pthread_mutex_unlock(&lock);
    } else if (old) {
        RELEASE(old);
    }
    ring[at] = ALLOCATE(2000);
    count(CHURN, 2000);
    if (!old) lives[CHURN] += 2000;
}

static void tell(const char *step, unsigned long rounds) {
    printf("{\"step\":\"%s\",\"facts\":{\"rounds\":%lu", step, rounds);
    for (int kind = 0; kind < KINDS; kind++)
        printf(",\"%s\":{\"bytes\":%llu,\"objects\":%llu,\"live\":%llu}", names[kind], bytes[kind], objects[kind], lives[kind]);
    // Times of the monotonic clock, and the variance of those at which objects came.
    for (int kind = LEAK; kind <= CACHE; kind++) {
        double many = objects[kind] ? objects[kind] : 1, before = born[kind].before / many;
        printf(",\"born_%s\":{\"first\":%.6f,\"last\":%.6f,\"before\":%.6f,\"after\":%.6f,\"variance\":%.6f}", names[kind],
               began + born[kind].first, began + born[kind].last, began + before, began + born[kind].after / many,
               born[kind].squares / many - before * before);
    }
    printf("}}\n");
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    double length = atof(argv[1]);
    long batch = atol(argv[2]), pause = atol(argv[3]);
    char line[16];
    began = seconds();
    static char buffer[4096];
    setvbuf(stdin, 0, _IONBF, 0);
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    pthread_t thread;
    pthread_create(&thread, 0, other, 0);
    tell("ready", 0);
    unsigned long rounds = 0;
    while (read(0, line, sizeof line) > 0) {
        for (double end = seconds() + length; seconds() < end;) {
            for (long i = 0; i < batch; i++, rounds++) {
                small();
                middle();
                zeroed();
                grown();
                aligned();
                churn();
                if (rounds % 10 == 0) leak(), cache();
            }
            if (pause) usleep(pause);
        }
        tell("counted", rounds);
    }
    return 0;
}
#ifdef __cplusplus
}
#endif
