// Package ledger is a driver of a database that answers a question after as many milliseconds as it asks for. It waits for the
// answer as C libraries do: the thread itself waits.
package ledger

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

func init() { sql.Register("ledger", ledger{}) }

type ledger struct{}

type conn struct {
	server net.Conn
	client *os.File
}

func (ledger) Open(string) (driver.Conn, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return nil, err
	}
	server, err := listener.Accept()
	if err != nil {
		return nil, err
	}
	file, err := client.(*net.TCPConn).File()
	return &conn{server, file}, err
}

// Exec asks and waits for the answer.
func (c *conn) Exec(query string, _ []driver.Value) (driver.Result, error) {
	milliseconds, err := strconv.Atoi(query)
	if err != nil {
		return nil, err
	}
	answer := make([]byte, 1)
	go func() {
		time.Sleep(time.Duration(milliseconds) * time.Millisecond)
		c.server.Write(answer)
	}()
	// Once it was asked for, a descriptor makes whoever reads wait.
	if read, err := syscall.Read(int(c.client.Fd()), make([]byte, 1)); read != 1 {
		return nil, err
	}
	return driver.RowsAffected(1), nil
}

func (*conn) Prepare(string) (driver.Stmt, error) { return nil, errors.New("no statements") }
func (*conn) Begin() (driver.Tx, error)           { return nil, errors.New("no transactions") }
func (c *conn) Close() error                      { return c.client.Close() }
