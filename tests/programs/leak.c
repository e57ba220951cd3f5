// Ten requests a second; each keeps one descriptor for ever, opens and closes some, and borrows one for a while.
//
// It talks with the test as tests/src/workloads/gate.rs does.
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FRAME __attribute__((noinline, noclone))
#define BORROWED 3

static int leaked, borrowed[BORROWED], sink;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

FRAME void leak_one(void) {
    int fd = open("/dev/null", O_RDONLY); // the leak
    leaked += fd >= 0;
}

FRAME void open_and_close(void) {
    int pair[2];
    for (int i = 0; i < 20; i++) {
        int fd = open("/dev/zero", O_RDONLY);
        sink += fd;
        close(fd);
    }
    sink += socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    close(pair[0]);
    close(pair[1]);
}

FRAME void borrow_one(int request) {
    int *place = &borrowed[request % BORROWED];
    if (*place > 0) close(*place);
    *place = dup(0);
    sink += *place;
}

static int told(int milliseconds) {
    char line[64];
    struct pollfd in = {.fd = 0, .events = POLLIN};
    return poll(&in, 1, milliseconds) > 0 && read(0, line, sizeof line) > 0;
}

int main(void) {
    for (int i = 0; i < BORROWED; i++) borrow_one(i);
    printf("{\"step\":\"ready\",\"pid\":%d,\"facts\":{}}\n", getpid());
    fflush(stdout);
    told(-1);
    double begin = now();
    for (int request = 0;; request++) {
        leak_one();
        open_and_close();
        borrow_one(request);
        double wait = begin + (request + 1) * 0.1 - now();
        if (told(wait > 0 ? (int)(wait * 1e3) + 1 : 0)) break;
    }
    for (int i = 0; i < BORROWED; i++) close(borrowed[i]);
    printf("{\"step\":\"stopped\",\"pid\":%d,\"facts\":{\"leaked\":%d,\"seconds\":%f}}\n", getpid(), leaked, now() - begin);
    fflush(stdout);
    told(-1);
    return 0;
}
