//! Programs of several languages: inlined functions, templates, closures. Each prints the address of `checkout`.

pub(super) const C: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
struct order { int id; char name[32]; };
static inline int price(int n) { return n * 7 + (n & 3); }
static inline int tax(int n) { int p = price(n); return p > 100 ? p / 5 : p / 10; }
static int total(const struct order *orders, int n) {
    int sum = 0;
    for (int i = 0; i < n; i++) sum += tax(orders[i].id) + (int)strlen(orders[i].name);
    return sum;
}
static int compare(const void *a, const void *b) {
    const struct order *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}
__attribute__((noinline)) int checkout(int n) {
    struct order *orders = calloc((size_t)n, sizeof *orders);
    if (!orders) return -1;
    for (int i = 0; i < n; i++) {
        orders[i].id = (n * 31 + i) % 17;
        snprintf(orders[i].name, sizeof orders[i].name, "order %d", i);
    }
    qsort(orders, (size_t)n, sizeof *orders, compare);
    int sum = total(orders, n);
    free(orders);
    return sum;
}
int main(void) {
    printf("%p\n", (void *)checkout);
    fflush(stdout);
    char c;
    return (int)read(0, &c, 1) + (checkout(9) & 0);
}
"#;

pub(super) const CPP: &str = r#"
#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <unistd.h>
#include <vector>
namespace shop {
template <typename T> struct Cart {
    std::vector<T> items;
    std::map<std::string, T> named;
    __attribute__((noinline)) T sum(int n) {
        for (int i = 0; i < n; i++) { items.push_back(T(i)); named[std::to_string(i)] += T(i); }
        std::sort(items.begin(), items.end(), [](const T &a, const T &b) { return a > b; });
        T all = 0;
        for (auto &[name, value] : named) all += value * T(name.size());
        return all + items.front();
    }
};
}
extern "C" __attribute__((noinline)) int checkout(int n) {
    return int(shop::Cart<double>().sum(n)) + int(shop::Cart<long>().sum(n));
}
int main() {
    printf("%p\n", (void *)checkout);
    fflush(stdout);
    char c;
    return int(read(0, &c, 1)) + (checkout(9) & 0);
}
"#;

pub(super) const RUST: &str = r#"
use std::collections::BTreeMap;
use std::io::{Read, Write};
mod shop {
    pub trait Price { fn price(&self) -> u64; }
    #[derive(Clone)]
    pub struct Order { pub id: u64, pub name: String }
    impl Price for Order { fn price(&self) -> u64 { self.id * 7 + self.name.len() as u64 } }
}
use shop::{Order, Price};
#[inline(never)]
#[no_mangle]
pub extern "C" fn checkout(n: u64) -> u64 {
    let mut orders: Vec<Order> = (0..n).map(|id| Order { id: (id * 31) % 17, name: format!("order {id}") }).collect();
    orders.sort_by_key(|order| std::cmp::Reverse(order.price()));
    let by: BTreeMap<u64, Order> = orders.iter().cloned().map(|o| (o.id, o)).collect();
    by.values().map(Price::price).sum()
}
fn main() {
    println!("{:p}", checkout as *const ());
    std::io::stdout().flush().unwrap();
    let mut b = [0u8; 1];
    let _ = std::io::stdin().read(&mut b);
    if checkout(9) == 1 { println!("x"); }
}
"#;

pub(super) const GO: &str = r#"
package main

import (
	"fmt"
	"os"
	"reflect"
	"sort"
)

type order struct {
	id   int
	name string
}

type cart struct{ orders []order }

func (c *cart) total() (sum int) {
	for _, o := range c.orders {
		sum += price(o.id) + len(o.name)
	}
	return
}

func price(n int) int { return n*7 + n&3 }

//go:noinline
func checkout(n int) int {
	c := &cart{}
	for i := 0; i < n; i++ {
		c.orders = append(c.orders, order{(n*31 + i) % 17, fmt.Sprint("order ", i)})
	}
	sort.Slice(c.orders, func(a, b int) bool { return c.orders[a].id < c.orders[b].id })
	return c.total()
}

func main() {
	fmt.Printf("%#x\n", reflect.ValueOf(checkout).Pointer())
	os.Stdin.Read(make([]byte, 1))
	if checkout(9) == 1 {
		fmt.Println("x")
	}
}
"#;
