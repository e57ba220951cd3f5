// A service whose functions wait, call and compute in packages of Go and of others, and say for how long: owners of stacks.
package main

import (
	"bufio"
	"database/sql"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime"
	"sort"
	"strconv"
	"syscall"
	"time"

	_ "example.com/ledger"
)

const (
	waits  = 10
	pause  = 100 * time.Millisecond
	dials  = 200
	length = 0.7
)

var input = bufio.NewReader(os.Stdin)

type order struct {
	Price uint64
	Name  string
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func step(name string, facts map[string]float64) {
	line, err := json.Marshal(map[string]interface{}{"step": name, "pid": os.Getpid(), "facts": facts})
	must(err)
	os.Stdout.Write(append(line, '\n'))
	if _, err = input.ReadString('\n'); err != nil {
		os.Exit(0)
	}
}

// used is the CPU time of this thread.
func used() float64 {
	var usage syscall.Rusage
	const thread = 1
	must(syscall.Getrusage(thread, &usage))
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}

// load waits for answers of the database.
//
//go:noinline
func load(db *sql.DB) float64 {
	seconds := 0.0
	for range make([]struct{}, waits) {
		begin := time.Now()
		_, err := db.Exec(strconv.Itoa(int(pause.Milliseconds())))
		must(err)
		seconds += time.Since(begin).Seconds()
	}
	return seconds
}

// receive waits for a peer that sends a byte now and then.
//
//go:noinline
func receive(from net.Conn) float64 {
	seconds, bytes := 0.0, make([]byte, 1)
	for range make([]struct{}, waits) {
		begin := time.Now()
		_, err := from.Read(bytes)
		must(err)
		seconds += time.Since(begin).Seconds()
	}
	return seconds
}

//go:noinline
func send(to net.Conn) {
	for range make([]struct{}, waits) {
		time.Sleep(pause)
		_, err := to.Write([]byte{1})
		must(err)
	}
}

// dial opens connections that stay.
//
//go:noinline
func dial(address string) []net.Conn {
	var opened []net.Conn
	for range make([]struct{}, dials) {
		made, err := net.Dial("tcp", address)
		must(err)
		opened = append(opened, made)
	}
	return opened
}

// render computes in encoding/json, sort and fmt; sort calls back.
//
//go:noinline
func render(seconds float64) float64 {
	begin := used()
	for used()-begin < seconds {
		orders := make([]order, 500)
		for at := range orders {
			orders[at] = order{uint64(at*7919) % 503, fmt.Sprintf("order %d", at)}
		}
		sort.Slice(orders, func(one, other int) bool { return orders[one].Price < orders[other].Price })
		_, err := json.Marshal(orders)
		must(err)
	}
	return used() - begin
}

// blocking makes the thread of whoever reads from a connection wait, as programs do that once asked for its descriptor.
func blocking(of net.Conn) {
	file, err := of.(*net.TCPConn).File()
	must(err)
	file.Fd()
	must(file.Close())
}

func main() {
	runtime.LockOSThread()
	db, err := sql.Open("ledger", "")
	must(err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	address := listener.Addr().String()
	out, err := net.Dial("tcp", address)
	must(err)
	in, err := listener.Accept()
	must(err)
	blocking(in)
	go func() {
		for {
			if _, err := listener.Accept(); err != nil {
				return
			}
		}
	}()
	step("ready", nil)
	render(length / 2)
	step("warm", nil)
	step("computed", map[string]float64{"render": render(length)})
	for {
		facts := map[string]float64{"load": load(db), "dial": float64(len(dial(address)))}
		go send(out)
		facts["receive"] = receive(in)
		step("waited", facts)
	}
}
