// Allocations that cross threads, processes and allocators. Takes one command a line, and tells after each what it has allocated
// since its start, its children's included, and what lives:
//   threads   four threads allocate at once; the main thread frees half of what they left
//   grow      one block grows to 8 MB by realloc, in place and moving
//   shrink    and shrinks to 1 MB
//   fork      a child that waits for its commands; it frees what it got from its parent
//   both      child and parent allocate at once
//   kill      the child goes on allocating and is killed in the middle of it
//   load PATH an allocator comes by dlopen
//   loaded    it is used
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 4, EACH = 5000, LEFT = 10, BOTH = 20000 };
struct sums { unsigned long long bytes, objects, live; };
static struct sums threads, grown, both, loaded;
static void *left[THREADS][EACH / LEFT];
static char *block;
static size_t block_size;
static pid_t child;
static int to_child[2], from_child[2];
static void *(*loaded_malloc)(size_t);
static void (*loaded_free)(void *);

static void count(struct sums *sums, size_t size, int stays) {
    sums->bytes += size;
    sums->objects++;
    if (stays) sums->live += size;
}

__attribute__((noinline)) void *by_threads(size_t size) {
    void *volatile at = malloc(size);
    return at;
}

static void *thread(void *number) {
    void **mine = left[(size_t)number];
    for (int i = 0; i < EACH; i++) {
        void *at = by_threads(1000);
        if (i % LEFT) free(at);
        else mine[i / LEFT] = at;
    }
    return 0;
}

static void run_threads(void) {
    pthread_t ids[THREADS];
    for (size_t i = 0; i < THREADS; i++) pthread_create(&ids[i], 0, thread, (void *)i);
    for (int i = 0; i < THREADS; i++) pthread_join(ids[i], 0);
    for (int i = 0; i < THREADS * EACH; i++) count(&threads, 1000, i % LEFT == 0);
    for (int i = 0; i < THREADS; i++)
        for (int j = 0; j < EACH / LEFT; j += 2) {
            free(left[i][j]);
            left[i][j] = 0;
            threads.live -= 1000;
        }
}

__attribute__((noinline)) void resize(size_t size) {
    block = realloc(block, size);
    memset(block, 1, size < 64 ? size : 64);
    count(&grown, size, 0);
    grown.live = block_size = size;
}

__attribute__((noinline)) void in_both(int round) {
    void *volatile at = malloc(3000);
    if (round % LEFT) free(at);
}

static void run_both(struct sums *sums) {
    for (int i = 0; i < BOTH; i++) {
        in_both(i);
        count(sums, 3000, i % LEFT == 0);
    }
}

static void be_child(void) {
    char order;
    for (int i = 0; i < THREADS; i++)
        for (int j = 0; j < EACH / LEFT; j++) free(left[i][j]);
    free(block);
    while (read(to_child[0], &order, 1) == 1) {
        struct sums sums = {0};
        if (order == 'b') run_both(&sums);
        if (write(from_child[1], &sums, sizeof sums) != sizeof sums) break;
        // Until the parent kills it.
        while (order == 'k') run_both(&sums);
    }
    _exit(0);
}

__attribute__((noinline)) void by_loaded(int round) {
    void *volatile at = loaded_malloc(2000);
    if (round % LEFT) loaded_free(at);
    count(&loaded, 2000, round % LEFT == 0);
}

static void ask(char order, struct sums *sums) {
    if (write(to_child[1], &order, 1) != 1) exit(1);
    if (sums && read(from_child[0], sums, sizeof *sums) != sizeof *sums) exit(1);
}

static void tell(const char *step) {
    const char *names[] = {"threads", "grown", "both", "loaded"};
    struct sums all[] = {threads, grown, both, loaded};
    printf("{\"step\":\"%s\",\"facts\":{", step);
    for (int i = 0; i < 4; i++)
        printf("%s\"%s\":{\"bytes\":%llu,\"objects\":%llu,\"live\":%llu}", i ? "," : "", names[i], all[i].bytes, all[i].objects, all[i].live);
    printf("}}\n");
    fflush(stdout);
}

int main(void) {
    static char line[4096], in[4096], out[4096];
    struct sums sums;
    setvbuf(stdin, in, _IOFBF, sizeof in);
    setvbuf(stdout, out, _IOFBF, sizeof out);
    if (pipe(to_child) || pipe(from_child)) return 1;
    tell("ready");
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (!strcmp(line, "threads")) run_threads();
        if (!strcmp(line, "grow"))
            for (size_t size = 1000; size <= 8000000; size *= 2) resize(size);
        if (!strcmp(line, "shrink")) resize(1000000);
        if (!strcmp(line, "fork") && !(child = fork())) be_child();
        if (!strcmp(line, "both")) {
            ask('b', 0);
            run_both(&both);
            if (read(from_child[0], &sums, sizeof sums) != sizeof sums) return 1;
            both.bytes += sums.bytes;
            both.objects += sums.objects;
            both.live += sums.live;
        }
        if (!strcmp(line, "kill")) {
            both.live -= BOTH / LEFT * 3000;
            ask('k', &sums);
            usleep(20000);
            kill(child, SIGKILL);
            waitpid(child, 0, 0);
        }
        if (!strncmp(line, "load ", 5)) {
            void *library = dlopen(line + 5, RTLD_NOW | RTLD_LOCAL);
            if (!library) return 1;
            loaded_malloc = (void *(*)(size_t))dlsym(library, "malloc");
            loaded_free = (void (*)(void *))dlsym(library, "free");
            if (!loaded_malloc || !loaded_free) return 1;
        }
        if (!strcmp(line, "loaded"))
            for (int i = 0; i < BOTH; i++) by_loaded(i);
        tell(strtok(line, " "));
    }
    return 0;
}
