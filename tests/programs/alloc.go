// A Go program that tells what it allocates, as alloc.c: alloc-go [PROFILE]. A line is a phase; "write" has it write its own heap
// profile to PROFILE. It goes on when it is interrupted.
package main

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"strings"
)

// Bytes and objects that a function allocated, and bytes that it keeps. All sizes are those of size classes: Go counts what it
// hands out.
type amount struct{ bytes, objects, live int }

var (
	facts = map[string]*amount{}
	sink  []byte
	early [][]byte
	kept  [][]byte
	full  [][]byte
)

// Names are made once, so that telling what was allocated allocates little.
func count(function string, size, times int, keeps bool) {
	of := facts[function]
	of.bytes += size * times
	of.objects += times
	if keeps {
		of.live += size * times
	}
}

//go:noinline
func begin(times int) {
	for i := 0; i < times; i++ {
		early[i] = make([]byte, 32768)
	}
	count("begin", 32768, times, true)
}

//go:noinline
func leak(times int) {
	begin := len(kept)
	kept = kept[:begin+times]
	for i := 0; i < times; i++ {
		kept[begin+i] = make([]byte, 16384)
	}
	count("leak", 16384, times, true)
}

//go:noinline
func cache(times int) {
	for i := 0; i < times; i++ {
		full[i] = make([]byte, 4096)
	}
	count("cache", 4096, times, true)
}

// Inlined, so that a stack has it and the function that it is inlined into at one call.
func buffer(size int) []byte {
	return make([]byte, size)
}

//go:noinline
func churn(times int) {
	for i := 0; i < times; i++ {
		sink = buffer(8192)
	}
	count("buffer", 8192, times, false)
}

//go:noinline
func small(times int) {
	for i := 0; i < times; i++ {
		sink = make([]byte, 64)
	}
	count("small", 64, times, false)
}

//go:noinline
func deep(depth, times int) {
	if depth > 0 {
		deep(depth-1, times)
		return
	}
	for i := 0; i < times; i++ {
		sink = make([]byte, 1<<20)
	}
	count("deep", 1<<20, times, false)
}

func phase(first bool) {
	leak(512)
	if first {
		cache(4096)
	}
	churn(16384)
	small(500000)
	deep(60, 32)
	sink = nil
}

func tell(step string) {
	parts := make([]string, 0, len(facts))
	for name, of := range facts {
		parts = append(parts, fmt.Sprintf("%q:{\"bytes\":%d,\"objects\":%d,\"live\":%d}", name, of.bytes, of.objects, of.live))
	}
	fmt.Printf("{\"step\":%q,\"pid\":%d,\"facts\":{%s}}\n", step, os.Getpid(), strings.Join(parts, ","))
}

func main() {
	// Who interrupts it is told, and it goes on.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	go func() {
		for range interrupts {
			fmt.Printf("{\"step\":\"interrupted\",\"pid\":%d,\"facts\":{}}\n", os.Getpid())
		}
	}()
	for _, name := range []string{"begin", "leak", "cache", "buffer", "small", "deep"} {
		facts[name] = &amount{}
	}
	early, full, kept = make([][]byte, 2048), make([][]byte, 4096), make([][]byte, 0, 1<<16)
	begin(2048)
	// What is published is as of the end of a collection.
	runtime.GC()
	runtime.GC()
	in := bufio.NewReader(os.Stdin)
	tell("ready")
	for phases := 0; ; {
		line, err := in.ReadString('\n')
		if err != nil {
			runtime.KeepAlive(early)
			return
		}
		if line == "write\n" {
			file, err := os.Create(os.Args[1])
			if err == nil {
				err = pprof.Lookup("heap").WriteTo(file, 0)
			}
			if err != nil {
				os.Exit(2)
			}
			file.Close()
			tell("written")
			continue
		}
		phase(phases == 0)
		phases++
		runtime.GC()
		runtime.GC()
		tell("counted")
	}
}
