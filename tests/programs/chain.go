// A program whose stacks are known, as chain.c, in Go: chain WORK SECONDS.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
)

var sink uint64

func gate(in *bufio.Reader, step string) {
	fmt.Printf("{\"step\":%q,\"pid\":%d,\"facts\":{}}\n", step, os.Getpid())
	if _, err := in.ReadString('\n'); err != nil {
		os.Exit(1)
	}
}

func spin(end time.Time) {
	for time.Now().Before(end) {
		for i := uint64(0); i < 1000000; i++ {
			sink = sink*31 + i
		}
	}
}

//go:noinline
func warmUp(end time.Time) {
	spin(end)
	sink++
}

//go:noinline
func leafCPU(end time.Time) {
	spin(end)
	sink++
}

//go:noinline
func leafSleep(end time.Time) {
	for time.Now().Before(end) {
		// The thread itself waits, not only the goroutine.
		pause := syscall.NsecToTimespec(2000000)
		_ = syscall.Nanosleep(&pause, nil)
	}
	sink++
}

//go:noinline
func leafFault(end time.Time) {
	const length = 128 << 20
	memory, err := syscall.Mmap(-1, 0, length, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		os.Exit(2)
	}
	_ = syscall.Madvise(memory, syscall.MADV_NOHUGEPAGE)
	for at := 0; at < length; at += 4096 {
		memory[at] = 1
	}
	for time.Now().Before(end) {
		pause := syscall.NsecToTimespec(100000000)
		_ = syscall.Nanosleep(&pause, nil)
	}
	sink++
}

//go:noinline
func leafSyscall(end time.Time) {
	for time.Now().Before(end) {
		for i := 0; i < 1000; i++ {
			sink += uint64(syscall.Getppid())
		}
	}
	sink++
}

//go:noinline
func third(work string, end time.Time) {
	switch work {
	case "cpu":
		leafCPU(end)
	case "fault":
		leafFault(end)
	case "syscall":
		leafSyscall(end)
	default:
		leafSleep(end)
	}
	sink++
}

//go:noinline
func second(call func()) {
	call()
	sink++
}

//go:noinline
func first(work string, end time.Time) {
	second(func() {
		third(work, end)
		sink++
	})
	sink++
}

func main() {
	seconds, err := strconv.ParseFloat(os.Args[2], 64)
	if err != nil {
		os.Exit(2)
	}
	in := bufio.NewReader(os.Stdin)
	gate(in, "ready")
	warmUp(time.Now().Add(3 * time.Second))
	gate(in, "warm")
	first(os.Args[1], time.Now().Add(time.Duration(seconds*1e9)))
	fmt.Printf("{\"step\":\"truth\",\"pid\":%d}\n", os.Getpid())
}
