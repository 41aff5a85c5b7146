/* A disk that is slow, fails or forgets, and a clock that is wrong, preloaded into a process.
 *
 * Owns nothing but what its environment names, read once:
 *   SHIM_ROOT             only files below this folder are touched (an absolute path without links)
 *   SHIM_DIR              the switches, each a small file that is read at every call and may be absent:
 *                           delay_ms      how long fsync, fdatasync, sync_file_range and msync take
 *                           sync_errno    EIO, ENOSPC or a number: these calls fail
 *                           write_errno   the same for write, pwrite, writev, pwritev, ftruncate, fallocate
 *   SHIM_DISK             a folder that plays the platter: what a power cut would leave of each file, see below
 *   SHIM_CLOCK_OFFSET_MS  added to the time of day; the monotonic clock stays
 *
 * The platter has one file `f-KEY` for each file that was ever synced: its content and length as of its last fsync or
 * fdatasync. KEY is inode and time of birth, so renames that bypass libc do not confuse it. A write that was not followed
 * by a sync is not there, whether it appended or overwrote; neither is a write that began after the sync did. A folder that
 * is synced gets a list `d-KEY` of its entries, a line for each: KEY, a space, the name. After a kill the test puts the
 * files back to that state.
 *
 * A sync that fails forgets what it should have brought to the disk, as Linux does: a later sync does not bring it either.
 * Not seen: writes through mmap, io_uring or raw system calls (if a file only grew by them, that is seen), O_SYNC.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    dev_t dev;
    ino_t ino;
    long long born_ns;
} Key;

/* What happened to a file since its last sync. */
typedef struct Dirty {
    Key key;
    off_t from, to; /* One range that covers all writes; empty if from >= to. */
    off_t seen;     /* The length as far as writes were seen. */
    pthread_mutex_t syncing;
    struct Dirty *next;
} Dirty;

enum { BUCKETS = 1024, CHUNK = 64 * 1024 };

static char root[PATH_MAX];
static size_t root_len;
static char switches[PATH_MAX];
static char disk[PATH_MAX];
static long long clock_offset_ms;
static Dirty *table[BUCKETS];
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

static void read_env(char *into, const char *name) {
    const char *value = getenv(name);
    snprintf(into, PATH_MAX, "%s", value ? value : "");
}

__attribute__((constructor)) static void begin(void) {
    read_env(root, "SHIM_ROOT");
    root_len = strlen(root);
    read_env(switches, "SHIM_DIR");
    read_env(disk, "SHIM_DISK");
    const char *offset = getenv("SHIM_CLOCK_OFFSET_MS");
    clock_offset_ms = offset ? atoll(offset) : 0;
}

/* System calls without the functions that stand here in their place. */
static long raw_write(int fd, const void *bytes, size_t len, off_t at) {
    return syscall(SYS_pwrite64, fd, bytes, len, at);
}

/* Reads a switch; 0 if it is not there. */
static int read_switch(const char *name, char *into, size_t room) {
    if (!switches[0]) return 0;
    char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/%s", switches, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t len = read(fd, into, room - 1);
    close(fd);
    if (len <= 0) return 0;
    into[len] = 0;
    return 1;
}

static int failure(const char *name) {
    char word[32];
    if (!read_switch(name, word, sizeof word)) return 0;
    if (!strncmp(word, "EIO", 3)) return EIO;
    if (!strncmp(word, "ENOSPC", 6)) return ENOSPC;
    return atoi(word);
}

static void delay(void) {
    char word[32];
    if (!read_switch("delay_ms", word, sizeof word)) return;
    long ms = atol(word);
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&left, &left) && errno == EINTR) {}
}

/* Whether a descriptor is a file or folder below the root. */
static int is_ours(int fd, struct stat *about) {
    if (!root_len || fstat(fd, about)) return 0;
    if (!S_ISREG(about->st_mode) && !S_ISDIR(about->st_mode)) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len < (ssize_t)root_len) return 0;
    path[len] = 0;
    return !memcmp(path, root, root_len) && (path[root_len] == '/' || !path[root_len]);
}

static int key_of(int folder, const char *name, int flags, Key *key) {
    struct statx about;
    if (statx(folder, name, flags, STATX_INO | STATX_BTIME, &about)) return 0;
    key->dev = makedev(about.stx_dev_major, about.stx_dev_minor);
    key->ino = about.stx_ino;
    int born = about.stx_mask & STATX_BTIME;
    key->born_ns = born ? about.stx_btime.tv_sec * 1000000000LL + about.stx_btime.tv_nsec : 0;
    return 1;
}

static void platter_path(char *path, size_t room, char kind, const Key *key, const char *suffix) {
    snprintf(path, room, "%s/%c-%llu-%lld%s", disk, kind, (unsigned long long)key->ino, key->born_ns, suffix);
}

/* What is known of a file; made at the first call for it, with `len` as its length so far. */
static Dirty *dirty_of(const Key *key, off_t len) {
    Dirty **place = &table[(key->ino ^ (unsigned long long)key->born_ns) % BUCKETS];
    for (; *place; place = &(*place)->next) {
        Dirty *found = *place;
        if (found->key.ino == key->ino && found->key.born_ns == key->born_ns && found->key.dev == key->dev) return found;
    }
    Dirty *fresh = calloc(1, sizeof *fresh);
    if (!fresh) abort();
    fresh->key = *key;
    fresh->seen = len;
    pthread_mutex_init(&fresh->syncing, NULL);
    return *place = fresh;
}

static void cover(Dirty *dirty, off_t from, off_t to) {
    if (from >= to) return;
    if (dirty->from >= dirty->to) {
        dirty->from = from;
        dirty->to = to;
        return;
    }
    if (from < dirty->from) dirty->from = from;
    if (to > dirty->to) dirty->to = to;
}

/* Notes that [from, to) of a file of ours changed; `before` is its length before that. */
static void changed(int fd, off_t from, off_t to, off_t before) {
    Key key;
    if (!disk[0] || !key_of(fd, "", AT_EMPTY_PATH, &key)) return;
    pthread_mutex_lock(&table_lock);
    Dirty *dirty = dirty_of(&key, before);
    cover(dirty, from, to);
    if (to > dirty->seen) dirty->seen = to;
    pthread_mutex_unlock(&table_lock);
}

/* Brings [from, to) of the file to the platter, and the length `len`. A failure is one of the test's machine: stop hard,
 * rather than forget what was promised. */
static void bring(int fd, const Key *key, off_t from, off_t to, off_t len) {
    char path[PATH_MAX + 64], link[64];
    platter_path(path, sizeof path, 'f', key, "");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int source = open(link, O_RDONLY | O_CLOEXEC);
    int target = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (source < 0 || target < 0) abort();
    char *chunk = malloc(CHUNK);
    if (!chunk) abort();
    /* Grown first: a kill in between leaves zeros where nothing came yet, as a disk may. */
    struct stat about;
    if (fstat(target, &about)) abort();
    if (about.st_size < len && syscall(SYS_ftruncate, target, len)) abort();
    while (from < to) {
        size_t want = to - from < CHUNK ? (size_t)(to - from) : CHUNK;
        ssize_t got = syscall(SYS_pread64, source, chunk, want, from);
        if (got < 0) abort();
        if (got == 0) break; /* Cut off meanwhile. */
        if (raw_write(target, chunk, got, from) != got) abort();
        from += got;
    }
    if (syscall(SYS_ftruncate, target, len)) abort();
    free(chunk);
    close(target);
    close(source);
}

/* Lists a folder on the platter, by rename, so that a kill leaves the old list or the new one. */
static void list(int fd, const Key *key) {
    char path[PATH_MAX + 64], fresh[PATH_MAX + 80], link[64];
    platter_path(path, sizeof path, 'd', key, "");
    snprintf(fresh, sizeof fresh, "%s.%ld", path, syscall(SYS_gettid));
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    DIR *folder = opendir(link);
    FILE *lines = fopen(fresh, "we");
    if (!folder || !lines) abort();
    struct dirent *entry;
    while ((entry = readdir(folder))) {
        Key of;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (!key_of(dirfd(folder), entry->d_name, AT_SYMLINK_NOFOLLOW, &of)) continue; /* Removed meanwhile. */
        fprintf(lines, "%llu-%lld %s\n", (unsigned long long)of.ino, of.born_ns, entry->d_name);
    }
    closedir(folder);
    if (fclose(lines) || rename(fresh, path)) abort();
}

/* A sync of a file or folder of ours, whatever it is called; `flush` is the call itself. */
static int sync_ours(int fd, const struct stat *about, long flush) {
    Key key;
    Dirty *dirty = NULL;
    off_t from = 0, to = 0;
    int known = disk[0] && key_of(fd, "", AT_EMPTY_PATH, &key);
    struct stat now = *about;
    if (known && S_ISREG(about->st_mode)) {
        pthread_mutex_lock(&table_lock);
        dirty = dirty_of(&key, about->st_size);
        pthread_mutex_unlock(&table_lock);
        /* A second sync of the same file waits for the first, as on a disk. */
        pthread_mutex_lock(&dirty->syncing);
        pthread_mutex_lock(&table_lock);
        if (fstat(fd, &now)) now = *about;
        cover(dirty, dirty->seen, now.st_size);
        from = dirty->from;
        to = dirty->to < now.st_size ? dirty->to : now.st_size;
        dirty->from = dirty->to = 0;
        dirty->seen = now.st_size;
        pthread_mutex_unlock(&table_lock);
    }
    delay();
    int error = failure("sync_errno");
    long done = error ? -1 : syscall(flush, fd);
    if (!error && done) error = errno;
    if (!error && known) {
        if (S_ISDIR(now.st_mode)) list(fd, &key);
        else bring(fd, &key, from, to, now.st_size);
    }
    if (dirty) pthread_mutex_unlock(&dirty->syncing);
    if (error) errno = error;
    return error ? -1 : 0;
}

int fsync(int fd) {
    struct stat about;
    return is_ours(fd, &about) ? sync_ours(fd, &about, SYS_fsync) : (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    struct stat about;
    return is_ours(fd, &about) ? sync_ours(fd, &about, SYS_fdatasync) : (int)syscall(SYS_fdatasync, fd);
}

/* Promises nothing after a power cut (sync_file_range(2)), so nothing goes to the platter. */
int sync_file_range(int fd, off64_t from, off64_t len, unsigned int flags) {
    struct stat about;
    if (is_ours(fd, &about)) {
        delay();
        int error = failure("sync_errno");
        if (error) {
            errno = error;
            return -1;
        }
    }
    return (int)syscall(SYS_sync_file_range, fd, from, len, flags);
}

/* Whose pages these are is not looked up: every msync of the process is meant. */
int msync(void *pages, size_t len, int flags) {
    delay();
    int error = failure("sync_errno");
    if (error) {
        errno = error;
        return -1;
    }
    return (int)syscall(SYS_msync, pages, len, flags);
}

/* A write of some kind: fails if it shall, else is done and noted. `at` is where, or -1 for where the file stands. */
#define WRITE(fd, at, call)                                                                                            \
    struct stat about;                                                                                                 \
    int ours = is_ours(fd, &about) && S_ISREG(about.st_mode);                                                          \
    int error = ours ? failure("write_errno") : 0;                                                                     \
    if (error) {                                                                                                       \
        errno = error;                                                                                                 \
        return -1;                                                                                                     \
    }                                                                                                                  \
    ssize_t done = (call);                                                                                             \
    if (ours && done > 0) {                                                                                            \
        off_t from = (at) >= 0 ? (off_t)(at) : lseek(fd, 0, SEEK_CUR) - done;                                          \
        changed(fd, from, from + done, about.st_size);                                                                 \
    }                                                                                                                  \
    return done

ssize_t write(int fd, const void *bytes, size_t len) { WRITE(fd, -1, syscall(SYS_write, fd, bytes, len)); }

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at) {
    WRITE(fd, at, syscall(SYS_pwrite64, fd, bytes, len, at));
}

ssize_t pwrite(int fd, const void *bytes, size_t len, off_t at) { return pwrite64(fd, bytes, len, at); }

ssize_t writev(int fd, const struct iovec *parts, int count) { WRITE(fd, -1, syscall(SYS_writev, fd, parts, count)); }

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    WRITE(fd, at, syscall(SYS_pwritev, fd, parts, (long)count, at, 0L));
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return pwritev64(fd, parts, count, at); }

int ftruncate64(int fd, off64_t len) {
    struct stat about;
    int ours = is_ours(fd, &about);
    int error = ours ? failure("write_errno") : 0;
    if (error) {
        errno = error;
        return -1;
    }
    int done = (int)syscall(SYS_ftruncate, fd, len);
    /* What is written beyond a cut later is new, also where the platter still has old bytes. */
    if (ours && !done) {
        int grows = len > about.st_size;
        changed(fd, grows ? about.st_size : len, grows ? len : about.st_size, about.st_size);
    }
    return done;
}

int ftruncate(int fd, off_t len) { return ftruncate64(fd, len); }

int fallocate64(int fd, int mode, off64_t from, off64_t len) {
    struct stat about;
    int ours = is_ours(fd, &about);
    int error = ours ? failure("write_errno") : 0;
    if (error) {
        errno = error;
        return -1;
    }
    int done = (int)syscall(SYS_fallocate, fd, mode, from, len);
    if (ours && !done) changed(fd, from, from + len, about.st_size);
    return done;
}

int fallocate(int fd, int mode, off_t from, off_t len) { return fallocate64(fd, mode, from, len); }

int posix_fallocate64(int fd, off64_t from, off64_t len) { return fallocate64(fd, 0, from, len) ? errno : 0; }

int posix_fallocate(int fd, off_t from, off_t len) { return posix_fallocate64(fd, from, len); }

int clock_gettime(clockid_t clock, struct timespec *time) {
    if (!real_clock_gettime) {
        /* Two threads that come here at once write the same word. */
        *(void **)&real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    }
    int done = real_clock_gettime ? real_clock_gettime(clock, time) : (int)syscall(SYS_clock_gettime, clock, time);
    if (!done && clock_offset_ms && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        long long ns = time->tv_nsec + clock_offset_ms % 1000 * 1000000;
        time->tv_sec += clock_offset_ms / 1000 + (ns < 0 ? -1 : ns / 1000000000);
        time->tv_nsec = (ns + 1000000000) % 1000000000;
    }
    return done;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone; /* Obsolete, and nobody passes one. */
    struct timespec time;
    if (clock_gettime(CLOCK_REALTIME, &time)) return -1;
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
