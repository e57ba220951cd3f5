// A C++ program whose memory is known by its stacks: reads a line, allocates, tells so, reads a line, ends without giving back.
// An allocation that is freed comes before what stays, and the last thing is a release: so the most there ever is, is there at the end.
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <unistd.h>
#include <vector>

#define NOINLINE __attribute__((noinline))

namespace shop {
struct Item {
    char name[312];
    Item *next;
};
Item *items;
std::vector<std::string> *catalog;
std::map<long, long> *index;
std::vector<std::unique_ptr<char[]>> *sessions;
std::vector<void *> *blobs;
char *volatile sink;

// Called from two places: two stacks.
NOINLINE void make_item() {
    Item *item = new Item();
    item->next = items;
    items = item;
}

NOINLINE void morning() {
    for (int i = 0; i < 60000; i++) make_item();
    asm volatile("");
}

NOINLINE void evening() {
    for (int i = 0; i < 35000; i++) make_item();
    asm volatile("");
}

NOINLINE void load_catalog() {
    for (int i = 0; i < 30000; i++) catalog->emplace_back(200 + i % 50, 'x');
    asm volatile("");
}

NOINLINE void build_index() {
    for (long i = 0; i < 80000; i++) (*index)[i * 7919 % 1000003] = i;
    asm volatile("");
}

NOINLINE void open_session(int depth) {
    if (depth > 0)
        open_session(depth - 1);
    else
        for (int i = 0; i < 500; i++) sessions->emplace_back(new char[4096]);
    asm volatile("");
}

NOINLINE void read_blobs() {
    for (int i = 0; i < 12; i++) {
        char *blob = static_cast<char *>(calloc(1, 100000));
        blobs->push_back(realloc(blob, 90000 + 1000 * i));
    }
    asm volatile("");
}

NOINLINE void pass_by() {
    for (int i = 0; i < 100000; i++) {
        sink = new char[200];
        delete[] sink;
    }
    asm volatile("");
}
} // namespace shop

static void turn(const char *text) {
    char byte;
    if (write(1, text, strlen(text)) < 0 || read(0, &byte, 1) < 0) _exit(1);
}

int main() {
    turn("ready\n");
    shop::pass_by();
    shop::catalog = new std::vector<std::string>();
    shop::catalog->reserve(30000);
    shop::index = new std::map<long, long>();
    shop::sessions = new std::vector<std::unique_ptr<char[]>>();
    shop::sessions->reserve(500);
    shop::blobs = new std::vector<void *>();
    shop::blobs->reserve(12);
    shop::morning();
    shop::evening();
    shop::load_catalog();
    shop::build_index();
    shop::open_session(5);
    shop::read_blobs();
    shop::sink = new char[1];
    delete[] shop::sink;
    turn("done\n");
    _exit(0);
}
