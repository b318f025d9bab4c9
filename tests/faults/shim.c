/*
 * An LD_PRELOAD shim that counts what a process tree does to the files of one directory, and at the n-th time
 * kills the tree or lets the call fail. Built by the tests with the system compiler.
 *
 *   FAULT_STATE   a file of struct state, shared by every process of the tree
 *   FAULT_DIR     only calls on files at or below this directory count
 *
 * Counted is every call that changes a file, its attributes or its name, or brings it to the disk: the writes,
 * truncations and allocations, copy_file_range and the sharing of blocks (FICLONE), the syncs, rename, link, symlink,
 * unlink, mkdir, rmdir, owner, mode, times and extended attributes, and opening a file with O_CREAT or O_TRUNC.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

struct state {
    uint64_t count;  /* counted calls so far */
    uint64_t at;     /* the call at which the fault comes; 0: only count */
    int32_t error;   /* 0: kill the tree; else the errno of the failing call */
    int32_t sticky;  /* calls after it that take space fail too, as on a full disk */
    int32_t root;    /* pid of the first process, killed with the tree */
    int32_t tripped;
};

static struct state *state;
static char directory[PATH_MAX];
static size_t directory_length;

__attribute__((constructor)) static void start(void)
{
    const char *file = getenv("FAULT_STATE"), *where = getenv("FAULT_DIR");
    if (!file || !where)
        return;
    int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int fd = real_open(file, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    void *map = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return;
    directory_length = (size_t)snprintf(directory, sizeof directory, "%s", where);
    state = map;
    int32_t nobody = 0;
    __atomic_compare_exchange_n(&state->root, &nobody, (int32_t)getpid(), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static int inside(const char *path)
{
    return strncmp(path, directory, directory_length) == 0 &&
           (path[directory_length] == '/' || path[directory_length] == '\0');
}

static int counts_path(int dirfd, const char *path)
{
    char whole[PATH_MAX * 2], base[PATH_MAX], link[64];
    if (!state || !path)
        return 0;
    if (path[0] == '/')
        return inside(path);
    if (dirfd == AT_FDCWD)
        snprintf(link, sizeof link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
    ssize_t length = readlink(link, base, sizeof base - 1);
    if (length < 0)
        return 0;
    base[length] = '\0';
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return inside(whole);
}

static int counts_fd(int fd)
{
    char link[64], path[PATH_MAX];
    if (!state)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return inside(path);
}

/* 0: go on. Else the errno with which the call fails. Does not return when the tree is to die here. */
static int fault(int takes_space)
{
    uint64_t n = __atomic_add_fetch(&state->count, 1, __ATOMIC_SEQ_CST);
    if (state->at == 0 || n < state->at)
        return 0;
    if (n > state->at)
        return state->error && state->sticky && takes_space ? state->error : 0;
    state->tripped = 1;
    if (state->error)
        return state->error;
    kill(state->root, SIGKILL);
    kill(getpid(), SIGKILL);
    pause();
    return EIO;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define GUARD(counted, takes_space)              \
    if (counted) {                               \
        int error_ = fault(takes_space);         \
        if (error_) {                            \
            errno = error_;                      \
            return -1;                           \
        }                                        \
    }

ssize_t write(int fd, const void *data, size_t size)
{
    GUARD(counts_fd(fd), 1)
    return REAL(write)(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    GUARD(counts_fd(fd), 1)
    return REAL(pwrite)(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    GUARD(counts_fd(fd), 1)
    return REAL(pwrite64)(fd, data, size, at);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at)
{
    GUARD(counts_fd(fd), 1)
    return REAL(pwritev)(fd, parts, count, at);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at)
{
    GUARD(counts_fd(fd), 1)
    return REAL(pwritev64)(fd, parts, count, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    GUARD(counts_fd(fd), 1)
    return REAL(writev)(fd, parts, count);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags)
{
    GUARD(counts_fd(fd), 1)
    return REAL(pwritev2)(fd, parts, count, at, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags)
{
    GUARD(counts_fd(fd), 1)
    return REAL(pwritev64v2)(fd, parts, count, at, flags);
}

ssize_t sendfile(int to, int from, off_t *at, size_t size)
{
    GUARD(counts_fd(to), 1)
    return REAL(sendfile)(to, from, at, size);
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t size)
{
    GUARD(counts_fd(to), 1)
    return REAL(sendfile64)(to, from, at, size);
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    GUARD(request == 0x40049409 /* FICLONE */ && counts_fd(fd), 1)
    return REAL(ioctl)(fd, request, argument);
}

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t size, unsigned flags)
{
    GUARD(counts_fd(to), 1)
    return REAL(copy_file_range)(from, from_at, to, to_at, size, flags);
}

int ftruncate(int fd, off_t size)
{
    GUARD(counts_fd(fd), 1)
    return REAL(ftruncate)(fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    GUARD(counts_fd(fd), 1)
    return REAL(ftruncate64)(fd, size);
}

int fallocate(int fd, int mode, off_t at, off_t size)
{
    GUARD(counts_fd(fd), 1)
    return REAL(fallocate)(fd, mode, at, size);
}

int fallocate64(int fd, int mode, off64_t at, off64_t size)
{
    GUARD(counts_fd(fd), 1)
    return REAL(fallocate64)(fd, mode, at, size);
}

int posix_fallocate(int fd, off_t at, off_t size)
{
    if (counts_fd(fd)) {
        int error = fault(1);
        if (error)
            return error;
    }
    return REAL(posix_fallocate)(fd, at, size);
}

int posix_fallocate64(int fd, off64_t at, off64_t size)
{
    if (counts_fd(fd)) {
        int error = fault(1);
        if (error)
            return error;
    }
    return REAL(posix_fallocate64)(fd, at, size);
}

int truncate(const char *path, off_t size)
{
    GUARD(counts_path(AT_FDCWD, path), 1)
    return REAL(truncate)(path, size);
}

int truncate64(const char *path, off64_t size)
{
    GUARD(counts_path(AT_FDCWD, path), 1)
    return REAL(truncate64)(path, size);
}

int sync_file_range(int fd, off64_t at, off64_t size, unsigned flags)
{
    GUARD(counts_fd(fd), 0)
    return REAL(sync_file_range)(fd, at, size, flags);
}

int syncfs(int fd)
{
    GUARD(counts_fd(fd), 0)
    return REAL(syncfs)(fd);
}

int fsync(int fd)
{
    GUARD(counts_fd(fd), 0)
    return REAL(fsync)(fd);
}

int fdatasync(int fd)
{
    GUARD(counts_fd(fd), 0)
    return REAL(fdatasync)(fd);
}

int rename(const char *from, const char *to)
{
    GUARD(counts_path(AT_FDCWD, to), 0)
    return REAL(rename)(from, to);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    GUARD(counts_path(to_dir, to), 0)
    return REAL(renameat)(from_dir, from, to_dir, to);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    GUARD(counts_path(to_dir, to), 0)
    return REAL(renameat2)(from_dir, from, to_dir, to, flags);
}

int link(const char *from, const char *to)
{
    GUARD(counts_path(AT_FDCWD, to), 0)
    return REAL(link)(from, to);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
    GUARD(counts_path(to_dir, to), 0)
    return REAL(linkat)(from_dir, from, to_dir, to, flags);
}

int unlink(const char *path)
{
    GUARD(counts_path(AT_FDCWD, path), 0)
    return REAL(unlink)(path);
}

int unlinkat(int dir, const char *path, int flags)
{
    GUARD(counts_path(dir, path), 0)
    return REAL(unlinkat)(dir, path, flags);
}

int symlink(const char *to, const char *path)
{
    GUARD(counts_path(AT_FDCWD, path), 1)
    return REAL(symlink)(to, path);
}

int symlinkat(const char *to, int dir, const char *path)
{
    GUARD(counts_path(dir, path), 1)
    return REAL(symlinkat)(to, dir, path);
}

int mkdir(const char *path, mode_t mode)
{
    GUARD(counts_path(AT_FDCWD, path), 1)
    return REAL(mkdir)(path, mode);
}

int mkdirat(int dir, const char *path, mode_t mode)
{
    GUARD(counts_path(dir, path), 1)
    return REAL(mkdirat)(dir, path, mode);
}

int rmdir(const char *path)
{
    GUARD(counts_path(AT_FDCWD, path), 0)
    return REAL(rmdir)(path);
}

int chmod(const char *path, mode_t mode)
{
    GUARD(counts_path(AT_FDCWD, path), 0)
    return REAL(chmod)(path, mode);
}

int fchmod(int fd, mode_t mode)
{
    GUARD(counts_fd(fd), 0)
    return REAL(fchmod)(fd, mode);
}

int fchmodat(int dir, const char *path, mode_t mode, int flags)
{
    GUARD(counts_path(dir, path), 0)
    return REAL(fchmodat)(dir, path, mode, flags);
}

int chown(const char *path, uid_t user, gid_t group)
{
    GUARD(counts_path(AT_FDCWD, path), 0)
    return REAL(chown)(path, user, group);
}

int lchown(const char *path, uid_t user, gid_t group)
{
    GUARD(counts_path(AT_FDCWD, path), 0)
    return REAL(lchown)(path, user, group);
}

int fchown(int fd, uid_t user, gid_t group)
{
    GUARD(counts_fd(fd), 0)
    return REAL(fchown)(fd, user, group);
}

int fchownat(int dir, const char *path, uid_t user, gid_t group, int flags)
{
    GUARD(counts_path(dir, path), 0)
    return REAL(fchownat)(dir, path, user, group, flags);
}

int futimens(int fd, const struct timespec times[2])
{
    GUARD(counts_fd(fd), 0)
    return REAL(futimens)(fd, times);
}

int utimensat(int dir, const char *path, const struct timespec times[2], int flags)
{
    GUARD(counts_path(dir, path), 0)
    return REAL(utimensat)(dir, path, times, flags);
}

int setxattr(const char *path, const char *name, const void *value, size_t size, int flags)
{
    GUARD(counts_path(AT_FDCWD, path), 1)
    return REAL(setxattr)(path, name, value, size, flags);
}

int lsetxattr(const char *path, const char *name, const void *value, size_t size, int flags)
{
    GUARD(counts_path(AT_FDCWD, path), 1)
    return REAL(lsetxattr)(path, name, value, size, flags);
}

int fsetxattr(int fd, const char *name, const void *value, size_t size, int flags)
{
    GUARD(counts_fd(fd), 1)
    return REAL(fsetxattr)(fd, name, value, size, flags);
}

#define OPENS(flags) ((flags) & (O_CREAT | O_TRUNC))
#define MODE                                     \
    mode_t mode = 0;                             \
    if (flags & (O_CREAT | O_TMPFILE)) {         \
        va_list rest;                            \
        va_start(rest, flags);                   \
        mode = va_arg(rest, mode_t);             \
        va_end(rest);                            \
    }

int open(const char *path, int flags, ...)
{
    MODE
    GUARD(OPENS(flags) && counts_path(AT_FDCWD, path), 1)
    return REAL(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    MODE
    GUARD(OPENS(flags) && counts_path(AT_FDCWD, path), 1)
    return REAL(open64)(path, flags, mode);
}

int openat(int dir, const char *path, int flags, ...)
{
    MODE
    GUARD(OPENS(flags) && counts_path(dir, path), 1)
    return REAL(openat)(dir, path, flags, mode);
}

int openat64(int dir, const char *path, int flags, ...)
{
    MODE
    GUARD(OPENS(flags) && counts_path(dir, path), 1)
    return REAL(openat64)(dir, path, flags, mode);
}
