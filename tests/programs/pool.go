// A client of PostgreSQL with the pool of database/sql: pool DSN. It tells what DB.Stats says, and how long its queries took, by
// lines of JSON, one for each line that it reads.
package main

import (
	"bufio"
	"database/sql"
	"encoding/json"
	"math/rand"
	"os"
	"sync"
	"sync/atomic"
	"time"

	_ "github.com/lib/pq"
)

const (
	most    = 16
	idle    = 5
	workers = 6
	length  = 20 * time.Second
)

var (
	input   = bufio.NewReader(os.Stdin)
	queries int64
	busy    int64
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func step(name string, facts map[string]interface{}) {
	line, err := json.Marshal(map[string]interface{}{"step": name, "pid": os.Getpid(), "facts": facts})
	must(err)
	os.Stdout.Write(append(line, '\n'))
	if _, err = input.ReadString('\n'); err != nil {
		os.Exit(0)
	}
}

func query(db *sql.DB, text string) {
	begin := time.Now()
	_, err := db.Exec(text)
	must(err)
	atomic.AddInt64(&busy, int64(time.Since(begin)))
	atomic.AddInt64(&queries, 1)
}

// each runs something so often at once.
func each(count int, work func(number int)) {
	var group sync.WaitGroup
	for number := 0; number < count; number++ {
		group.Add(1)
		go func(number int) {
			defer group.Done()
			work(number)
		}(number)
	}
	group.Wait()
}

// inUse sums DB.Stats().InUse over time until it is told to end.
func inUse(db *sql.DB, end <-chan struct{}) (seconds float64, peak int) {
	last := time.Now()
	for {
		select {
		case <-end:
			return
		case <-time.After(2 * time.Millisecond):
		}
		now, used := time.Now(), db.Stats().InUse
		seconds += float64(used) * now.Sub(last).Seconds()
		last = now
		if used > peak {
			peak = used
		}
	}
}

func main() {
	db, err := sql.Open("postgres", os.Args[1])
	must(err)
	db.SetMaxOpenConns(most)
	db.SetMaxIdleConns(most)
	step("ready", nil)
	each(most, func(int) { query(db, "select pg_sleep(3)") })
	step("burst", map[string]interface{}{"open": db.Stats().OpenConnections, "queries": queries})

	begin := time.Now()
	busy = 0
	end := make(chan struct{})
	var used float64
	var peak int
	var watch sync.WaitGroup
	watch.Add(1)
	go func() { used, peak = inUse(db, end); watch.Done() }()
	each(workers, func(number int) {
		random := rand.New(rand.NewSource(int64(number)))
		for time.Since(begin) < length {
			query(db, "select pg_sleep(0.03)")
			time.Sleep(time.Duration(random.Float64() * float64(40*time.Millisecond)))
		}
	})
	seconds := time.Since(begin).Seconds()
	close(end)
	watch.Wait()
	step("used", map[string]interface{}{
		"open": db.Stats().OpenConnections, "in_use_seconds": used, "in_use_peak": peak,
		"query_seconds": float64(busy) / 1e9, "seconds": seconds, "queries": queries,
	})
	db.SetMaxIdleConns(idle)
	step("shrunk", map[string]interface{}{"open": db.Stats().OpenConnections})
	must(db.Close())
	step("closed", nil)
}
