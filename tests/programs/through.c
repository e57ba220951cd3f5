// A library that a program loads at run time.
#define FRAME __attribute__((noinline, noclone, visibility("default")))
#ifndef ROOM
#define ROOM 300
#endif

FRAME void inner(void (*call)(double), double end) {
    volatile char room[ROOM];
    room[0] = 1;
    call(end);
    (void)room[0];
    __asm__ volatile("" ::: "memory");
}

FRAME void through(void (*call)(double), double end) {
    inner(call, end);
    __asm__ volatile("" ::: "memory");
}
