// SPDX-License-Identifier: Apache-2.0

// Command waitname waits until a host name resolves: the init container of training workers, which may not start
// before the headless name of their master exists.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

const pause = 500 * time.Millisecond

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: waitname HOST SECONDS")
		os.Exit(2)
	}
	host := os.Args[1]
	seconds, err := strconv.Atoi(os.Args[2])
	if err != nil || seconds < 1 {
		fmt.Fprintf(os.Stderr, "waitname: SECONDS is a positive number, not %q\n", os.Args[2])
		os.Exit(2)
	}
	deadline, cancel := context.WithTimeout(context.Background(), time.Duration(seconds)*time.Second)
	defer cancel()
	for {
		addresses, err := net.DefaultResolver.LookupHost(deadline, host)
		if err == nil {
			fmt.Println(host, addresses)
			return
		}
		select {
		case <-deadline.Done():
			fmt.Fprintf(os.Stderr, "waitname: %s did not resolve in %d s: %v\n", host, seconds, err)
			os.Exit(1)
		case <-time.After(pause):
		}
	}
}
