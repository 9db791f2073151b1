/* Faults of the disk, preloaded into a process (tests/faults.py): counts every call that changes files below a folder,
   and at the one it is armed for fails, or kills the process, having written half. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[4096];
static long at, seen;
static int how, lasting;

void faults_arm(const char *folder, long point, int error, int lasts) {
    seen = 0, at = point, how = error, lasting = lasts;
    snprintf(root, sizeof root, "%s/", folder);
}

long faults_seen(void) { return seen; }

static int below(const char *path) {
    return root[0] && path && (path[0] != '/' || !strncmp(path, root, strlen(root)));
}

static int is_ours(int fd) {
    char link[64], path[4096];
    if (!root[0] || fd < 3) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return path[0] == '/' && below(path);
}

/* How this call goes: 0 well, 1 it has to fail with errno; or the process ends. */
static int fault(void) {
    long now = __sync_add_and_fetch(&seen, 1);
    if (!at || now < at || (now > at && !lasting)) return 0;
    if (!how) kill(getpid(), SIGKILL);
    errno = how;
    return 1;
}

#define REAL(name, ...) (((__typeof__(&name))dlsym(RTLD_NEXT, #name))(__VA_ARGS__))

#define ON_PATH(type, name, path, params, ...) \
    type name params { return below(path) && fault() ? -1 : REAL(name, __VA_ARGS__); }
#define ON_FILE(type, name, fd, params, ...) \
    type name params { return is_ours(fd) && fault() ? -1 : REAL(name, __VA_ARGS__); }

ON_PATH(int, rename, to, (const char *from, const char *to), from, to)
ON_PATH(int, renameat, to, (int a, const char *from, int b, const char *to), a, from, b, to)
ON_PATH(int, link, to, (const char *from, const char *to), from, to)
ON_PATH(int, linkat, to, (int a, const char *from, int b, const char *to, int flags), a, from, b, to, flags)
ON_PATH(int, symlink, to, (const char *from, const char *to), from, to)
ON_PATH(int, symlinkat, to, (const char *from, int b, const char *to), from, b, to)
ON_PATH(int, mkdir, path, (const char *path, mode_t mode), path, mode)
ON_PATH(int, mkdirat, path, (int a, const char *path, mode_t mode), a, path, mode)
ON_PATH(int, rmdir, path, (const char *path), path)
ON_PATH(int, unlink, path, (const char *path), path)
ON_PATH(int, unlinkat, path, (int a, const char *path, int flags), a, path, flags)
ON_PATH(int, truncate, path, (const char *path, off_t length), path, length)
ON_PATH(int, truncate64, path, (const char *path, off64_t length), path, length)
ON_FILE(int, ftruncate, fd, (int fd, off_t length), fd, length)
ON_FILE(int, ftruncate64, fd, (int fd, off64_t length), fd, length)
ON_FILE(int, fsync, fd, (int fd), fd)
ON_FILE(int, fdatasync, fd, (int fd), fd)
ON_FILE(ssize_t, writev, fd, (int fd, const struct iovec *parts, int n), fd, parts, n)
ON_FILE(ssize_t, pwrite, fd, (int fd, const void *data, size_t n, off_t where), fd, data, n, where)
ON_FILE(ssize_t, pwrite64, fd, (int fd, const void *data, size_t n, off64_t where), fd, data, n, where)
ON_FILE(ssize_t, sendfile, fd, (int fd, int from, off_t *where, size_t n), fd, from, where, n)
ON_FILE(ssize_t, sendfile64, fd, (int fd, int from, off64_t *where, size_t n), fd, from, where, n)
ON_FILE(ssize_t, copy_file_range, fd, (int from, off64_t *a, int fd, off64_t *b, size_t n, unsigned flags),
        from, a, fd, b, n, flags)

/* Half of it is written first, as by a disk that fills up. */
ssize_t write(int fd, const void *data, size_t n) {
    if (is_ours(fd)) {
        if (at && seen + 1 == at && n > 1) REAL(write, fd, data, n / 2);
        if (fault()) return -1;
    }
    return REAL(write, fd, data, n);
}

#define OPEN(name, path, params, ...)                                  \
    int name params {                                                  \
        mode_t mode = 0;                                               \
        if (flags & (O_CREAT | O_TMPFILE)) {                           \
            va_list more;                                              \
            va_start(more, flags), mode = va_arg(more, mode_t), va_end(more); \
        }                                                              \
        if ((flags & O_ACCMODE) != O_RDONLY && below(path) && fault()) return -1; \
        return REAL(name, __VA_ARGS__, flags, mode);                   \
    }

OPEN(open, path, (const char *path, int flags, ...), path)
OPEN(open64, path, (const char *path, int flags, ...), path)
OPEN(openat, path, (int at_fd, const char *path, int flags, ...), at_fd, path)
OPEN(openat64, path, (int at_fd, const char *path, int flags, ...), at_fd, path)
