/* A disk that fails, and a disk's diary: preloaded (LD_PRELOAD) into the daemon by benchmarks/soak_faults.py.
 *
 * Calls that change what is below HSCC_FAULTS_ROOT are made to fail as the shared control file says, and, if it asks for
 * it, are written down with their data, so that benchmarks/soak_power.py can tell what a power cut leaves of them.
 * HSCC_FAULTS is the directory of `control`, `hits` (one line a failed call) and `diary`. Linux, glibc, 64 bit.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { CREATE = 1, WRITE = 2, SYNC = 4, RENAME = 8, TRUNCATE = 16, REMOVE = 32, MKDIR = 64 };

struct control {
    int64_t countdown; /* the call that brings it to 0 fails */
    int64_t calls, hits;
    uint64_t random;
    uint32_t chance; /* of 2^32, instead of the countdown */
    int32_t armed, operations, error, lasting, shorten, diary, lie;
};

struct entry {
    uint8_t op;
    uint8_t pad[3];
    uint32_t thread;
    int64_t at_ns, offset;
    uint32_t path, other, data;
    uint32_t pad2;
};

static volatile struct control *control;
static char root[PATH_MAX];
static size_t root_length;
static int hits_file = -1, diary_file = -1;

static int open_log(const char *directory, const char *name) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    int high = fcntl(file, F_DUPFD_CLOEXEC, 700);
    syscall(SYS_close, file);
    return high;
}

__attribute__((constructor)) static void begin(void) {
    const char *directory = getenv("HSCC_FAULTS"), *below = getenv("HSCC_FAULTS_ROOT");
    char path[PATH_MAX];
    if (!directory || !below) return;
    snprintf(path, sizeof path, "%s/control", directory);
    int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (file < 0) return;
    void *shared = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (shared == MAP_FAILED) return;
    snprintf(root, sizeof root, "%s", below);
    root_length = strlen(root);
    hits_file = open_log(directory, "hits");
    diary_file = open_log(directory, "diary");
    control = shared;
}

static int is_below(const char *path) {
    return control && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int of_file(int file, char *path) {
    char link[64];
    if (!control) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

static int of_name(int directory, const char *name, char *path) {
    if (!control || !name) return 0;
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
    } else {
        char start[PATH_MAX];
        if (directory == AT_FDCWD) {
            if (syscall(SYS_getcwd, start, sizeof start) < 0) return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
            ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, start, sizeof start - 1);
            if (length < 0) return 0;
            start[length] = 0;
        }
        if (strlen(start) + strlen(name) + 2 > PATH_MAX) return 0;
        strcpy(path, start);
        strcat(path, "/");
        strcat(path, name);
    }
    return is_below(path);
}

static uint64_t draw(void) { /* splitmix64 */
    uint64_t z = __atomic_add_fetch(&control->random, 0x9E3779B97F4A7C15ULL, __ATOMIC_RELAXED);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
}

/* The error that this call is to end with, 0 for none. */
static int fault(int operation, const char *name, const char *path) {
    char line[PATH_MAX + 64];
    if (!control->armed || !(control->operations & operation)) return 0;
    __atomic_add_fetch(&control->calls, 1, __ATOMIC_RELAXED);
    if (control->chance) {
        if ((uint32_t)draw() >= control->chance) return 0;
    } else {
        int64_t left = __atomic_sub_fetch(&control->countdown, 1, __ATOMIC_SEQ_CST);
        if (left > 0 || (left < 0 && !control->lasting)) return 0;
    }
    __atomic_add_fetch(&control->hits, 1, __ATOMIC_RELAXED);
    int length = snprintf(line, sizeof line, "%s %s\n", name, path + root_length);
    syscall(SYS_write, hits_file, line, length);
    return control->error;
}

static void note(char op, const char *path, const char *other, int64_t offset, const void *data, size_t size) {
    struct entry entry = {.op = (uint8_t)op, .offset = offset, .data = (uint32_t)size};
    struct timespec now;
    if (!control->diary) return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    entry.thread = (uint32_t)syscall(SYS_gettid);
    entry.at_ns = now.tv_sec * 1000000000LL + now.tv_nsec;
    path += root_length;
    other = other ? other + root_length : "";
    entry.path = (uint32_t)strlen(path);
    entry.other = (uint32_t)strlen(other);
    struct iovec parts[4] = {{&entry, sizeof entry}, {(void *)path, entry.path}, {(void *)other, entry.other},
                             {(void *)data, size}};
    syscall(SYS_writev, diary_file, parts, 4);
}

static int fail(int error) {
    errno = error;
    return -1;
}

/* ---- files come to be ---- */

static int open_at(int directory, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    int below = (flags & (O_CREAT | O_TRUNC)) && !(flags & O_TMPFILE & ~O_DIRECTORY) && of_name(directory, name, path);
    int fresh = below && (flags & O_CREAT) && syscall(SYS_faccessat, AT_FDCWD, path, F_OK);
    if (below && (fresh || (flags & O_TRUNC))) {
        int error = fault(CREATE, "create", path);
        if (error) return fail(error);
    }
    int file = (int)syscall(SYS_openat, directory, name, flags, mode);
    if (file >= 0 && below) {
        if (fresh) note('c', path, NULL, 0, NULL, 0);
        if (!fresh && (flags & O_TRUNC)) note('t', path, NULL, 0, NULL, 0);
    }
    return file;
}

#define OPEN(NAME, PARAMETERS, DIRECTORY)                                  \
    int NAME PARAMETERS {                                                  \
        mode_t mode = 0;                                                   \
        if (flags & (O_CREAT | O_TMPFILE)) {                               \
            va_list rest;                                                  \
            va_start(rest, flags);                                         \
            mode = va_arg(rest, mode_t);                                   \
            va_end(rest);                                                  \
        }                                                                  \
        return open_at(DIRECTORY, name, flags, mode);                      \
    }
OPEN(open, (const char *name, int flags, ...), AT_FDCWD)
OPEN(open64, (const char *name, int flags, ...), AT_FDCWD)
OPEN(openat, (int at, const char *name, int flags, ...), at)
OPEN(openat64, (int at, const char *name, int flags, ...), at)

int mkdirat(int at, const char *name, mode_t mode) {
    char path[PATH_MAX];
    int below = of_name(at, name, path), error = below ? fault(MKDIR, "mkdir", path) : 0;
    if (error) return fail(error);
    int done = (int)syscall(SYS_mkdirat, at, name, mode);
    if (!done && below) note('m', path, NULL, 0, NULL, 0);
    return done;
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

/* ---- data ---- */

static ssize_t put(int file, const void *data, size_t size, int64_t offset) {
    char path[PATH_MAX];
    int below = of_file(file, path), error = below ? fault(WRITE, "write", path) : 0;
    if (error) {
        if (!control->shorten || size < 2) return fail(error);
        size /= 2;
    }
    ssize_t done = offset < 0 ? syscall(SYS_write, file, data, size) : syscall(SYS_pwrite64, file, data, size, offset);
    if (done > 0 && below && control->diary) {
        int64_t start = offset < 0 ? syscall(SYS_lseek, file, 0, SEEK_CUR) - done : offset;
        note('w', path, NULL, start, data, (size_t)done);
    }
    return done;
}
ssize_t write(int file, const void *data, size_t size) { return put(file, data, size, -1); }
ssize_t pwrite(int file, const void *data, size_t size, off_t offset) { return put(file, data, size, offset); }
ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset) { return put(file, data, size, offset); }

ssize_t writev(int file, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    if (!of_file(file, path)) return syscall(SYS_writev, file, parts, count);
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        ssize_t done = put(file, parts[i].iov_base, parts[i].iov_len, -1);
        if (done < 0) return total ? total : done;
        total += done;
        if ((size_t)done < parts[i].iov_len) break;
    }
    return total;
}

static ssize_t copy(int to, int from, off64_t *offset, size_t size) {
    char buffer[65536];
    size_t part = size < sizeof buffer ? size : sizeof buffer;
    ssize_t found = offset ? syscall(SYS_pread64, from, buffer, part, *offset) : syscall(SYS_read, from, buffer, part);
    if (found <= 0) return found;
    ssize_t done = put(to, buffer, (size_t)found, -1);
    if (done > 0 && offset) *offset += done;
    return done;
}
ssize_t sendfile(int to, int from, off_t *offset, size_t size) {
    char path[PATH_MAX];
    return of_file(to, path) ? copy(to, from, offset, size) : syscall(SYS_sendfile, to, from, offset, size);
}
ssize_t sendfile64(int to, int from, off64_t *offset, size_t size) { return sendfile(to, from, offset, size); }

int ftruncate(int file, off_t size) {
    char path[PATH_MAX];
    int below = of_file(file, path), error = below ? fault(TRUNCATE, "ftruncate", path) : 0;
    if (error) return fail(error);
    int done = (int)syscall(SYS_ftruncate, file, size);
    if (!done && below) note('t', path, NULL, size, NULL, 0);
    return done;
}
int ftruncate64(int file, off64_t size) { return ftruncate(file, size); }

int fallocate(int file, int mode, off_t offset, off_t size) {
    char path[PATH_MAX];
    int below = of_file(file, path), error = below ? fault(WRITE, "fallocate", path) : 0;
    return error ? fail(error) : (int)syscall(SYS_fallocate, file, mode, offset, size);
}
int fallocate64(int file, int mode, off64_t offset, off64_t size) { return fallocate(file, mode, offset, size); }
int posix_fallocate(int file, off_t offset, off_t size) { return fallocate(file, 0, offset, size) ? errno : 0; }
int posix_fallocate64(int file, off64_t offset, off64_t size) { return posix_fallocate(file, offset, size); }

static int sync_file(int file, long number) {
    char path[PATH_MAX];
    int below = of_file(file, path), error = below ? fault(SYNC, "fsync", path) : 0;
    if (error) {
        note('F', path, NULL, 0, NULL, 0); /* the kernel forgets that these pages are dirty */
        return fail(error);
    }
    if (below && control->lie) return 0;
    if (below) note('B', path, NULL, 0, NULL, 0);
    int done = (int)syscall(number, file);
    if (below && !done) note('E', path, NULL, 0, NULL, 0);
    return done;
}
int fsync(int file) { return sync_file(file, SYS_fsync); }
int fdatasync(int file) { return sync_file(file, SYS_fdatasync); }

/* ---- names ---- */

int renameat2(int at, const char *old, int to, const char *name, unsigned flags) {
    char path[PATH_MAX], other[PATH_MAX];
    int below = of_name(at, old, path) & of_name(to, name, other), error = below ? fault(RENAME, "rename", path) : 0;
    if (error) return fail(error);
    int done = (int)syscall(SYS_renameat2, at, old, to, name, flags);
    if (!done && below) note('r', path, other, 0, NULL, 0);
    return done;
}
int renameat(int at, const char *old, int to, const char *name) { return renameat2(at, old, to, name, 0); }
int rename(const char *old, const char *name) { return renameat2(AT_FDCWD, old, AT_FDCWD, name, 0); }

int linkat(int at, const char *old, int to, const char *name, int flags) {
    char path[PATH_MAX], other[PATH_MAX];
    int below = of_name(to, name, other), inside = of_name(at, old, path);
    int error = below ? fault(CREATE, "link", other) : 0;
    if (error) return fail(error);
    int done = (int)syscall(SYS_linkat, at, old, to, name, flags);
    if (!done && below && inside) note('l', path, other, 0, NULL, 0);
    return done;
}
int link(const char *old, const char *name) { return linkat(AT_FDCWD, old, AT_FDCWD, name, 0); }

int unlinkat(int at, const char *name, int flags) {
    char path[PATH_MAX];
    int below = of_name(at, name, path), error = below ? fault(REMOVE, "unlink", path) : 0;
    if (error) return fail(error);
    int done = (int)syscall(SYS_unlinkat, at, name, flags);
    if (!done && below) note(flags & AT_REMOVEDIR ? 'd' : 'u', path, NULL, 0, NULL, 0);
    return done;
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
