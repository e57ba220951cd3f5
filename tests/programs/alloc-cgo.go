// A Go program that also allocates in C: alloc-cgo. It tells what it allocates where, a phase for each line.
package main

/*
#cgo CFLAGS: -O2 -g
#include <stdlib.h>

// Nobody reads them, which the compiler must not know.
static void *volatile kept[1 << 20];
static long count;

__attribute__((noinline)) void in_c(long times, long size) {
	for (long i = 0; i < times; i++)
		kept[count++] = malloc(size);
}
*/
import "C"

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
)

var kept = make([][]byte, 0, 1<<20)

//go:noinline
func inGo(times, size int) {
	begin := len(kept)
	kept = kept[:begin+times]
	for i := 0; i < times; i++ {
		kept[begin+i] = make([]byte, size)
	}
}

func main() {
	if len(os.Args) > 1 {
		pprof.Lookup("heap").WriteTo(os.Stdout, 1)
	}
	in := bufio.NewReader(os.Stdin)
	fmt.Printf("{\"step\":\"ready\",\"pid\":%d,\"facts\":{}}\n", os.Getpid())
	for phase := 1; ; phase++ {
		if _, err := in.ReadString('\n'); err != nil {
			return
		}
		C.in_c(20000, 1000)
		inGo(10000, 4096)
		runtime.GC()
		runtime.GC()
		fmt.Printf("{\"step\":\"counted\",\"pid\":%d,\"facts\":{\"in_c\":%d,\"inGo\":%d}}\n", os.Getpid(), phase*20000*1000, phase*10000*4096)
	}
}
