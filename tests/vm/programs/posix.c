/* What POSIX and Linux promise of a file system, checked one call at a time: `posix DIRECTORY`, as root.
 *
 * Each check prints "ok NAME" or "failed NAME: got, wanted"; the last line counts them. The rules are those that suites of
 * this kind ask for: errors by path, by type of file and by credentials; times; link counts; modes; contents.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>
#include <signal.h>

static int checks, failures;
static char name_255[256], name_256[257], path_4095[4096], path_4096[4097];

static void check(int good, const char *got, const char *format, ...)
{
    va_list rest;

    checks++;
    failures += !good;
    printf(good ? "ok " : "failed ");
    va_start(rest, format);
    vprintf(format, rest);
    va_end(rest);
    printf(good ? "\n" : ": %s\n", got);
}

static const char *named(int error) { return error ? strerrorname_np(error) : "0"; }

/* The errno of a call that says -1 for a failure. */
#define TRY(call) (errno = 0, (call) == -1 ? errno : 0)
/* One check: a call ends with this errno, 0 for none. */
#define ENDS(wanted, call, ...)                                                            \
    do {                                                                                   \
        int error_ = TRY(call), wanted_ = (wanted);                                        \
        char got_[96];                                                                     \
        snprintf(got_, sizeof got_, "got %s, wanted %s", named(error_), named(wanted_));   \
        check(error_ == wanted_, got_, __VA_ARGS__);                                       \
    } while (0)
/* One check: two numbers are equal. */
#define SAME(wanted, value, ...)                                                           \
    do {                                                                                   \
        long long value_ = (value), wanted_ = (wanted);                                    \
        char got_[96];                                                                     \
        snprintf(got_, sizeof got_, "got %lld, wanted %lld", value_, wanted_);             \
        check(value_ == wanted_, got_, __VA_ARGS__);                                       \
    } while (0)

static void must(int result, const char *what)
{
    if (result == -1) {
        printf("failed set-up of %s: %s\n", what, strerror(errno));
        failures++;
    }
}

static struct stat stat_of(const char *path)
{
    struct stat found;

    memset(&found, 0, sizeof found);
    must(lstat(path, &found), path);
    return found;
}

static int mode_of(const char *path) { return stat_of(path).st_mode & 07777; }

static void put(const char *path, const char *text, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);

    must(fd, path);
    must(write(fd, text, strlen(text)), path);
    close(fd);
    must(chmod(path, mode), path);
}

/* Do something in a child with other credentials; its exit status. */
static int as(uid_t uid, gid_t gid, int (*act)(void *), void *argument)
{
    int status;
    pid_t child;

    fflush(stdout);
    child = fork();
    if (child == 0) {
        if (syscall(SYS_setgroups, 0, NULL) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
            _exit(255);
        _exit(act(argument));
    }
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -status;
}

/* Calls that take a path, each by its name. */

static int closed(int fd)
{
    if (fd >= 0)
        close(fd);
    return fd < 0 ? -1 : 0;
}

static int do_read(const char *p) { return closed(open(p, O_RDONLY)); }
static int do_write(const char *p) { return closed(open(p, O_WRONLY)); }
static int do_create(const char *p) { return closed(open(p, O_RDWR | O_CREAT | O_EXCL, 0644)); }
static int do_mkdir(const char *p) { return mkdir(p, 0755); }
static int do_mkfifo(const char *p) { return mkfifo(p, 0644); }
static int do_mksock(const char *p) { return mknod(p, S_IFSOCK | 0644, 0); }
static int do_mkfile(const char *p) { return mknod(p, S_IFREG | 0644, 0); }
static int do_symlink(const char *p) { return symlink("target", p); }
static int do_link(const char *p) { return link("plain", p); }
static int do_rename_to(const char *p) { return rename("movable", p); }
static int do_unlink(const char *p) { return unlink(p); }
static int do_rmdir(const char *p) { return rmdir(p); }
static int do_link_from(const char *p) { return link(p, "linked"); }
static int do_rename_from(const char *p) { return rename(p, "renamed"); }
static int do_chmod(const char *p) { return chmod(p, 0644); }
static int do_chown(const char *p) { return chown(p, -1, -1); }
static int do_lchown(const char *p) { return lchown(p, -1, -1); }
static int do_truncate(const char *p) { return truncate(p, 3); }
static int do_stat(const char *p) { struct stat s; return stat(p, &s); }
static int do_lstat(const char *p) { struct stat s; return lstat(p, &s); }
static int do_utimens(const char *p) { return utimensat(AT_FDCWD, p, NULL, 0); }
static int do_access(const char *p) { return access(p, R_OK); }
static int do_readlink(const char *p) { char b[9]; return readlink(p, b, 9) < 0 ? -1 : 0; }
static int do_statfs(const char *p) { struct statfs s; return statfs(p, &s); }
static int do_chdir(const char *p)
{
    int here = open(".", O_RDONLY | O_DIRECTORY), error = TRY(chdir(p));

    must(fchdir(here), "fchdir");
    close(here);
    errno = error;
    return error ? -1 : 0;
}
static int do_opendir(const char *p) { return closed(open(p, O_RDONLY | O_DIRECTORY)); }

enum { MAKES = 1, FINDS = 2, FOLLOWS = 4, TAKES_NULL = 8 };
static const struct call {
    const char *name;
    int (*act)(const char *);
    int kind;
} calls[] = {
    {"open-for-reading", do_read, FINDS | FOLLOWS},   {"open-for-writing", do_write, FINDS | FOLLOWS},
    {"create", do_create, MAKES},                     {"mkdir", do_mkdir, MAKES},
    {"mkfifo", do_mkfifo, MAKES},                     {"mknod-socket", do_mksock, MAKES},
    {"mknod-file", do_mkfile, MAKES},                 {"symlink", do_symlink, MAKES},
    {"link-to", do_link, MAKES},                      {"rename-to", do_rename_to, 0},
    {"unlink", do_unlink, FINDS},                     {"rmdir", do_rmdir, FINDS},
    {"link-from", do_link_from, FINDS},               {"rename-from", do_rename_from, FINDS},
    {"chmod", do_chmod, FINDS | FOLLOWS},             {"chown", do_chown, FINDS | FOLLOWS},
    {"lchown", do_lchown, FINDS},                     {"truncate", do_truncate, FINDS | FOLLOWS},
    {"stat", do_stat, FINDS | FOLLOWS},               {"lstat", do_lstat, FINDS},
    {"utimensat", do_utimens, FINDS | FOLLOWS | TAKES_NULL}, {"access", do_access, FINDS | FOLLOWS},
    {"readlink", do_readlink, FINDS},                 {"statfs", do_statfs, FINDS | FOLLOWS},
    {"chdir", do_chdir, FINDS | FOLLOWS},             {"opendir", do_opendir, FINDS | FOLLOWS},
};
#define CALLS (int)(sizeof calls / sizeof *calls)

struct denied {
    const struct call *call;
    const char *path;
};

static int errno_of(void *argument)
{
    struct denied *denied = argument;

    return TRY(denied->call->act(denied->path));
}

static void test_paths(void)
{
    put("plain", "plain", 0666);
    put("movable", "movable", 0644);
    must(mkdir("closed", 0700), "closed");
    put("closed/file", "", 0666);
    must(mkdir("unwritable", 0755), "unwritable");
    must(mkdir("long", 0755), "long");
    must(symlink("loop-b", "loop-a"), "loop");
    must(symlink("loop-a", "loop-b"), "loop");
    for (int at = 0; at < CALLS; at++) {
        const struct call *call = &calls[at];
        struct denied closed = {call, "closed/file"}, unwritable = {call, "unwritable/new"};
        char long_in[300];

        ENDS(ENOTDIR, call->act("plain/below"), "%s: a component is a file", call->name);
        ENDS(ENOENT, call->act("nothing/below"), "%s: a component is missing", call->name);
        ENDS(ELOOP, call->act("loop-a/below"), "%s: a component is a loop of links", call->name);
        ENDS(ENAMETOOLONG, call->act(name_256), "%s: a name of 256 bytes", call->name);
        ENDS(ENAMETOOLONG, call->act(path_4096), "%s: a path of 4096 bytes", call->name);
        ENDS(ENOENT, call->act(""), "%s: an empty path", call->name);
        SAME(EACCES, as(65534, 65534, errno_of, &closed), "%s: no right to search a component", call->name);
        if (!(call->kind & TAKES_NULL))
            ENDS(EFAULT, call->act((const char *)1), "%s: a bad address", call->name);
        if (call->kind & FINDS)
            ENDS(ENOENT, call->act("nothing"), "%s: a missing file", call->name);
        if (call->kind & FOLLOWS)
            ENDS(ELOOP, call->act("loop-a"), "%s: a loop of links", call->name);
        if (!(call->kind & MAKES))
            continue;
        SAME(EACCES, as(65534, 65534, errno_of, &unwritable), "%s: no right to write the directory", call->name);
        snprintf(long_in, sizeof long_in, "long/%s", name_255);
        ENDS(0, call->act(long_in), "%s: a name of 255 bytes", call->name);
        must(remove(long_in), "a long name");
    }
    ENDS(0, chdir(path_4095) && errno != ENOENT ? -1 : 0, "a path of 4095 bytes is not too long");
}

static const struct kind {
    const char *name;
    int (*make)(const char *);
    mode_t type;
} kinds[] = {
    {"file", do_create, S_IFREG}, {"directory", do_mkdir, S_IFDIR}, {"fifo", do_mkfifo, S_IFIFO},
    {"socket", do_mksock, S_IFSOCK}, {"link", do_symlink, S_IFLNK},
};
#define KINDS (int)(sizeof kinds / sizeof *kinds)

static void test_types(void)
{
    for (int at = 0; at < KINDS; at++) {
        const struct kind *kind = &kinds[at];
        int is_dir = kind->type == S_IFDIR, is_link = kind->type == S_IFLNK;
        struct stat made;

        ENDS(0, kind->make("thing"), "%s: is made", kind->name);
        made = stat_of("thing");
        SAME(kind->type, made.st_mode & S_IFMT, "%s: its type", kind->name);
        SAME(is_dir ? 2 : 1, made.st_nlink, "%s: its links", kind->name);
        SAME(0, made.st_uid, "%s: its owner", kind->name);
        SAME(is_link ? 6 : made.st_size, made.st_size, "%s: its size", kind->name);
        for (int call = 0; call < CALLS; call++)
            if (calls[call].kind & MAKES)
                ENDS(EEXIST, calls[call].act("thing"), "%s: %s over it", kind->name, calls[call].name);
        ENDS(is_dir ? EISDIR : ENOTDIR, is_dir ? unlink("thing") : rmdir("thing"), "%s: the wrong removal", kind->name);
        ENDS(is_dir ? EPERM : 0, link("thing", "other"), "%s: a second link", kind->name);
        if (!is_dir) {
            SAME(2, stat_of("thing").st_nlink, "%s: two links", kind->name);
            SAME(made.st_ino, stat_of("other").st_ino, "%s: one inode", kind->name);
            ENDS(0, unlink("other"), "%s: one link less", kind->name);
            SAME(1, stat_of("thing").st_nlink, "%s: one link", kind->name);
        }
        if (!is_link) {
            ENDS(0, chmod("thing", 0111), "%s: chmod", kind->name);
            SAME(0111, mode_of("thing"), "%s: its new mode", kind->name);
            ENDS(EINVAL, closed(readlink("thing", name_256, 0)), "%s: is no link", kind->name);
        }
        ENDS(0, lchown("thing", 123, 456), "%s: lchown", kind->name);
        SAME(123, stat_of("thing").st_uid, "%s: its new owner", kind->name);
        SAME(456, stat_of("thing").st_gid, "%s: its new group", kind->name);
        ENDS(0, rename("thing", "moved"), "%s: rename", kind->name);
        SAME(made.st_ino, stat_of("moved").st_ino, "%s: the same inode after a rename", kind->name);
        ENDS(ENOENT, do_lstat("thing"), "%s: the old name is gone", kind->name);
        ENDS(0, is_dir ? rmdir("moved") : unlink("moved"), "%s: removal", kind->name);
        ENDS(ENOENT, do_lstat("moved"), "%s: is gone", kind->name);
    }
}

static void test_renames(void)
{
    for (int from = 0; from < KINDS; from++)
        for (int to = 0; to < KINDS; to++) {
            int dir_from = kinds[from].type == S_IFDIR, dir_to = kinds[to].type == S_IFDIR;
            int wanted = dir_from == dir_to ? 0 : dir_from ? ENOTDIR : EISDIR;

            must(kinds[from].make("from"), "from");
            must(kinds[to].make("to"), "to");
            ENDS(EEXIST, renameat2(AT_FDCWD, "from", AT_FDCWD, "to", RENAME_NOREPLACE), "rename %s to %s: no replace",
                 kinds[from].name, kinds[to].name);
            ENDS(wanted, rename("from", "to"), "rename %s to %s", kinds[from].name, kinds[to].name);
            if (!wanted)
                SAME(kinds[from].type, stat_of("to").st_mode & S_IFMT, "rename %s to %s: what is there",
                     kinds[from].name, kinds[to].name);
            else
                must(remove("from"), "from");
            must(remove("to"), "to");
        }
    must(mkdir("d", 0755), "d");
    must(mkdir("d/e", 0755), "d/e");
    put("f", "f", 0644);
    ENDS(EINVAL, rename("d", "d/e/f"), "rename a directory into itself");
    ENDS(ENOTEMPTY, rename("d/e", "d") && errno == EEXIST ? (errno = ENOTEMPTY, -1) : -1, "rename over a full directory");
    ENDS(0, rename("f", "f"), "rename to itself");
    ENDS(0, renameat2(AT_FDCWD, "d", AT_FDCWD, "f", RENAME_EXCHANGE), "exchange a directory and a file");
    SAME(S_IFDIR, stat_of("f").st_mode & S_IFMT, "exchange: the directory");
    SAME(S_IFREG, stat_of("d").st_mode & S_IFMT, "exchange: the file");
    ENDS(ENOENT, renameat2(AT_FDCWD, "d", AT_FDCWD, "nothing", RENAME_EXCHANGE), "exchange with nothing");
    ENDS(EINVAL, renameat2(AT_FDCWD, "d", AT_FDCWD, "f", RENAME_EXCHANGE | RENAME_NOREPLACE), "exchange and no replace");
    ENDS(EINVAL, renameat2(AT_FDCWD, "d", AT_FDCWD, "f", 1 << 20), "rename with an unknown flag");
    ENDS(0, link("d", "second"), "a second link");
    ENDS(0, rename("d", "second"), "rename to another link of the same file");
    SAME(2, stat_of("d").st_nlink, "rename to another link does nothing");
    must(mkdir("one", 0755), "one");
    must(mkdir("two", 0755), "two");
    must(mkdir("one/sub", 0755), "one/sub");
    ENDS(0, rename("one/sub", "two/sub"), "rename a directory to another parent");
    SAME(2, stat_of("one").st_nlink, "the old parent has a link less");
    SAME(3, stat_of("two").st_nlink, "the new parent has a link more");
    ENDS(ENOTEMPTY, rmdir("two") && errno == EEXIST ? (errno = ENOTEMPTY, -1) : -1, "rmdir of a full directory");
    ENDS(EINVAL, rmdir("two/sub/."), "rmdir of a dot");
}

static void test_modes(void)
{
    static const mode_t masks[] = {0, 022, 027, 077, 0177, 0777};

    for (int at = 0; at < 6; at++) {
        umask(masks[at]);
        must(closed(open("file", O_CREAT | O_EXCL | O_WRONLY, 0777)), "file");
        must(mkdir("dir", 0777), "dir");
        must(mkfifo("fifo", 0777), "fifo");
        SAME(0777 & ~masks[at], mode_of("file"), "umask %03o: a file", masks[at]);
        SAME(0777 & ~masks[at], mode_of("dir"), "umask %03o: a directory", masks[at]);
        SAME(0777 & ~masks[at], mode_of("fifo"), "umask %03o: a fifo", masks[at]);
        must(unlink("file"), "file");
        must(rmdir("dir"), "dir");
        must(unlink("fifo"), "fifo");
    }
    umask(022);
    put("file", "", 0644);
    for (mode_t mode = 0; mode <= 07777; mode = mode * 2 + 1) {
        ENDS(0, chmod("file", mode), "chmod %04o", mode);
        SAME(mode, mode_of("file"), "chmod %04o: the mode", mode);
    }
    must(mkdir("set", 02775), "set");
    must(chown("set", 0, 77), "set");
    must(chmod("set", 02775), "set");
    put("set/file", "", 0644);
    must(mkdir("set/dir", 0755), "set/dir");
    SAME(77, stat_of("set/file").st_gid, "a file takes the group of its set-gid directory");
    SAME(77, stat_of("set/dir").st_gid, "a directory takes the group of its set-gid directory");
    SAME(02000, mode_of("set/dir") & 02000, "a directory takes the set-gid bit");
}

struct owned {
    const char *path;
    mode_t mode;
    uid_t uid;
    gid_t gid;
};

static int chmod_it(void *a) { struct owned *o = a; return TRY(chmod(o->path, o->mode)); }
static int chown_it(void *a) { struct owned *o = a; return TRY(chown(o->path, o->uid, o->gid)); }
static int write_it(void *a)
{
    struct owned *o = a;
    int fd = open(o->path, O_WRONLY), error = fd < 0 ? errno : TRY(write(fd, "x", 1));

    close(fd);
    return error;
}
static int truncate_it(void *a) { struct owned *o = a; return TRY(truncate(o->path, o->mode)); }
static int unlink_it(void *a) { struct owned *o = a; return TRY(unlink(o->path)); }
static int rename_it(void *a) { struct owned *o = a; return TRY(rename(o->path, "sticky/renamed")); }
static int open_it(void *a) { struct owned *o = a; return TRY(closed(open(o->path, o->mode))); }
static int create_it(void *a) { struct owned *o = a; return TRY(closed(open(o->path, O_CREAT | O_EXCL | O_RDWR, o->mode))); }
static int utime_now_it(void *a) { struct owned *o = a; return TRY(utimensat(AT_FDCWD, o->path, NULL, 0)); }
static int utime_it(void *a)
{
    struct owned *o = a;
    struct timespec times[2] = {{1, 0}, {2, 0}};

    return TRY(utimensat(AT_FDCWD, o->path, times, 0));
}

static void test_owners(void)
{
    struct owned o = {"owned", 0600, 65533, 65533};

    put("owned", "text", 0644);
    must(chown("owned", 65534, 65534), "owned");
    SAME(0, as(65534, 65534, chmod_it, &o), "the owner may chmod");
    SAME(EPERM, as(65533, 65533, chmod_it, &o), "another may not chmod");
    SAME(EPERM, as(65534, 65534, chown_it, &o), "the owner may not give away");
    o.uid = -1, o.gid = 65533;
    SAME(EPERM, as(65534, 65534, chown_it, &o), "the owner may not take a group that is not its own");
    o.gid = 65534;
    SAME(0, as(65534, 65534, chown_it, &o), "the owner may take its own group");
    SAME(EACCES, as(65533, 65533, write_it, &o), "another may not write");
    SAME(EACCES, as(65533, 65533, truncate_it, &o), "another may not truncate");
    SAME(EACCES, as(65533, 65533, utime_now_it, &o), "another may not touch");
    SAME(EPERM, as(65533, 65533, utime_it, &o), "another may not set times");
    SAME(0, as(65534, 65534, utime_it, &o), "the owner may set times");
    SAME(2, stat_of("owned").st_mtime, "the time that was set");
    must(chmod("owned", 0666), "owned");
    SAME(0, as(65533, 65533, utime_now_it, &o), "who may write may touch");
    for (int bits = 0; bits < 8; bits++)
        for (int who = 0; who < 3; who++) {
            static const mode_t wanted[] = {O_RDONLY, O_WRONLY, O_RDWR};

            must(chmod("owned", bits << (6 - 3 * who)), "owned");
            for (int at = 0; at < 3; at++) {
                int need = at == 0 ? 4 : at == 1 ? 2 : 6;

                o.mode = wanted[at];
                SAME((bits & need) == need ? 0 : EACCES,
                     as(who ? 65533 : 65534, who == 1 ? 65534 : 65533, open_it, &o),
                     "%s with bits %o opens for %s", who == 0 ? "the owner" : who == 1 ? "the group" : "another", bits,
                     at == 0 ? "reading" : at == 1 ? "writing" : "both");
            }
        }
    must(chmod("owned", 06777), "owned");
    SAME(0, as(65533, 65533, write_it, &o), "another writes to a set-uid file");
    SAME(0777, mode_of("owned"), "a write by another clears set-uid and set-gid");
    must(chmod("owned", 06777), "owned");
    o.mode = 1;
    SAME(0, as(65533, 65533, truncate_it, &o), "another truncates a set-uid file");
    SAME(0777, mode_of("owned"), "a truncate by another clears set-uid and set-gid");
    must(chmod("owned", 06777), "owned");
    must(chown("owned", 65534, 65533), "owned");
    SAME(0777, mode_of("owned"), "chown clears set-uid and set-gid");
    must(chmod("owned", 02666), "owned");
    o.uid = -1, o.gid = 65533, o.mode = 02666;
    SAME(0, as(65534, 65534, chmod_it, &o), "the owner outside of the group sets set-gid");
    SAME(0666, mode_of("owned"), "set-gid is not for who is outside of the group");
    must(mkdir("sticky", 01777), "sticky");
    must(chmod("sticky", 01777), "sticky");
    put("sticky/file", "", 0666);
    must(chown("sticky/file", 65534, 65534), "sticky/file");
    o.path = "sticky/file";
    SAME(EPERM, as(65533, 65533, unlink_it, &o), "sticky: another may not unlink");
    SAME(EPERM, as(65533, 65533, rename_it, &o), "sticky: another may not rename");
    SAME(0, as(65534, 65534, rename_it, &o), "sticky: the owner may rename");
    o.path = "sticky/renamed";
    SAME(0, as(65534, 65534, unlink_it, &o), "sticky: the owner may unlink");
    o.path = "sticky/made", o.mode = 0640;
    SAME(0, as(65533, 65534, create_it, &o), "who may write a directory may create");
    SAME(65533, stat_of("sticky/made").st_uid, "the creator owns");
    SAME(65534, stat_of("sticky/made").st_gid, "the creator's group owns");
}

static struct timespec changed(const char *path) { return stat_of(path).st_ctim; }
static struct timespec modified(const char *path) { return stat_of(path).st_mtim; }
static int later(struct timespec a, struct timespec b)
{
    return a.tv_sec > b.tv_sec || (a.tv_sec == b.tv_sec && a.tv_nsec > b.tv_nsec);
}
static void tick(void) { usleep(12000); }

#define MOVES(expected, time, path, act, ...)                            \
    do {                                                                 \
        struct timespec before_ = time(path);                            \
        tick();                                                          \
        act;                                                             \
        check(later(time(path), before_) == (expected),                  \
              (expected) ? "the time stands still" : "the time moves", __VA_ARGS__); \
    } while (0)

static void test_times(void)
{
    must(mkdir("times", 0755), "times");
    must(chdir("times"), "times");
    put("file", "text", 0644);
    MOVES(1, modified, ".", put("new", "", 0644), "create: mtime of the directory");
    MOVES(1, changed, ".", put("new2", "", 0644), "create: ctime of the directory");
    MOVES(1, modified, ".", unlink("new"), "unlink: mtime of the directory");
    MOVES(1, modified, ".", mkdir("dir", 0755), "mkdir: mtime of the directory");
    MOVES(1, modified, ".", rmdir("dir"), "rmdir: mtime of the directory");
    MOVES(1, modified, ".", symlink("x", "link"), "symlink: mtime of the directory");
    MOVES(1, modified, ".", rename("new2", "new3"), "rename: mtime of the directory");
    MOVES(1, modified, ".", link("file", "hard"), "link: mtime of the directory");
    MOVES(1, changed, "file", link("file", "hard2"), "link: ctime of the file");
    MOVES(1, changed, "file", unlink("hard2"), "unlink: ctime of the file");
    MOVES(0, modified, "file", unlink("hard"), "unlink: mtime of the file");
    MOVES(1, changed, "file", chmod("file", 0600), "chmod: ctime");
    MOVES(0, modified, "file", chmod("file", 0644), "chmod: mtime");
    MOVES(1, changed, "file", chown("file", 1, 1), "chown: ctime");
    MOVES(1, modified, "file", truncate("file", 2), "truncate: mtime");
    MOVES(1, changed, "file", truncate("file", 3), "truncate: ctime");
    MOVES(1, modified, "file", put("file", "more", 0644), "write: mtime");
    MOVES(1, changed, "file", utimensat(AT_FDCWD, "file", NULL, 0), "utimensat: ctime");
    MOVES(0, changed, "file", chmod("nothing", 0600), "a failed chmod: ctime of another");
    MOVES(0, modified, ".", mkdir("file", 0755), "a failed mkdir: mtime of the directory");
    struct timespec both[2] = {{123456789, 987654321}, {1000000000, 1}};
    struct timespec one[2] = {{0, UTIME_OMIT}, {5, 6}}, none[2] = {{0, UTIME_OMIT}, {0, UTIME_OMIT}};
    struct timespec early[2] = {{-5, 0}, {-6, 0}}, bad[2] = {{0, 1000000000}, {0, 0}};
    ENDS(0, utimensat(AT_FDCWD, "file", both, 0), "utimensat with nanoseconds");
    SAME(123456789, stat_of("file").st_atim.tv_sec, "utimensat: atime");
    SAME(987654321, stat_of("file").st_atim.tv_nsec, "utimensat: atime's nanoseconds");
    SAME(1, stat_of("file").st_mtim.tv_nsec, "utimensat: mtime's nanoseconds");
    ENDS(0, utimensat(AT_FDCWD, "file", one, 0), "utimensat without atime");
    SAME(123456789, stat_of("file").st_atim.tv_sec, "utimensat: atime is left alone");
    SAME(5, stat_of("file").st_mtim.tv_sec, "utimensat: mtime alone");
    ENDS(0, utimensat(AT_FDCWD, "file", none, 0), "utimensat of nothing");
    SAME(5, stat_of("file").st_mtim.tv_sec, "utimensat: mtime is left alone");
    ENDS(EINVAL, utimensat(AT_FDCWD, "file", bad, 0), "utimensat with too many nanoseconds");
    ENDS(0, utimensat(AT_FDCWD, "file", early, 0), "utimensat before 1970");
    SAME(-6, stat_of("file").st_mtim.tv_sec, "utimensat: a negative time");
    ENDS(0, utimensat(AT_FDCWD, "link", both, AT_SYMLINK_NOFOLLOW), "utimensat of a link");
    SAME(1000000000, stat_of("link").st_mtim.tv_sec, "utimensat: a link's mtime");
    must(chdir(".."), "..");
}

static void test_opens(void)
{
    char text[16];
    int fd, other;

    put("data", "0123456789", 0644);
    must(mkdir("folder", 0755), "folder");
    must(symlink("data", "to-data"), "to-data");
    ENDS(EISDIR, do_write("folder"), "open a directory for writing");
    ENDS(ENOTDIR, do_opendir("data"), "open a file as a directory");
    ENDS(ELOOP, closed(open("to-data", O_RDONLY | O_NOFOLLOW)), "open a link without following");
    ENDS(0, do_read("to-data"), "open a link");
    ENDS(EEXIST, closed(open("to-data", O_CREAT | O_EXCL | O_WRONLY, 0644)), "create a link exclusively");
    ENDS(EISDIR, closed(open("folder", O_CREAT | O_WRONLY, 0644)), "create over a directory");
    ENDS(ENXIO, mkfifo("pipe", 0600) ? -1 : closed(open("pipe", O_WRONLY | O_NONBLOCK)), "open a fifo that nobody reads");
    fd = open("data", O_RDONLY);
    ENDS(EBADF, write(fd, "x", 1), "write to what is open for reading");
    SAME(5, pread(fd, text, 16, 5), "pread stops at the end");
    SAME(0, pread(fd, text, 16, 10), "pread at the end");
    SAME(0, pread(fd, text, 16, 1000), "pread behind the end");
    ENDS(EINVAL, pread(fd, text, 16, -1), "pread at a negative offset");
    close(fd);
    fd = open("data", O_WRONLY | O_APPEND);
    ENDS(EBADF, read(fd, text, 1), "read from what is open for writing");
    must(pwrite(fd, "ab", 2, 0), "pwrite");
    SAME(12, stat_of("data").st_size, "with O_APPEND every write appends");
    must(fcntl(fd, F_SETFL, 0), "fcntl");
    must(pwrite(fd, "AB", 2, 0), "pwrite");
    SAME(12, stat_of("data").st_size, "without it no more, from then on");
    close(fd);
    fd = open("data", O_RDWR | O_TRUNC);
    SAME(0, stat_of("data").st_size, "O_TRUNC truncates");
    SAME(3, pwrite(fd, "end", 3, 5000), "a write behind the end");
    SAME(5003, stat_of("data").st_size, "leaves a hole");
    SAME(16, pread(fd, text, 16, 100), "a hole is read");
    SAME(0, text[0] | text[15], "as zeroes");
    ENDS(0, ftruncate(fd, 3), "ftruncate");
    SAME(0, ftruncate(fd, 20), "ftruncate beyond");
    SAME(1, pread(fd, text, 1, 10) == 1 && text[0] == 0, "what was beyond is zero");
    ENDS(EINVAL, ftruncate(fd, -1), "ftruncate to a negative size");
    ENDS(0, fsync(fd), "fsync");
    ENDS(0, fdatasync(fd), "fdatasync");
    other = open("data", O_RDONLY);
    must(pwrite(fd, "seen", 4, 0), "pwrite");
    SAME(1, pread(other, text, 4, 0) == 4 && !memcmp(text, "seen", 4), "a write is seen through another fd at once");
    close(other);
    ENDS(0, unlink("data"), "unlink what is open");
    SAME(4, pread(fd, text, 4, 0), "what is unlinked is read");
    SAME(4, pwrite(fd, "more", 4, 100), "what is unlinked is written");
    struct stat held;
    must(fstat(fd, &held), "fstat");
    SAME(0, held.st_nlink, "what is unlinked has no links");
    SAME(104, held.st_size, "what is unlinked has a size");
    ENDS(0, fchmod(fd, 0600), "what is unlinked has its mode changed");
    ENDS(0, ftruncate(fd, 7), "what is unlinked is truncated");
    ENDS(ENOENT, do_stat("data"), "what is unlinked has no name");
    close(fd);
    fd = open(".", O_TMPFILE | O_RDWR, 0640);
    ENDS(0, fd, "O_TMPFILE");
    SAME(5, write(fd, "hello", 5), "a file without a name is written");
    snprintf(name_256, sizeof name_256, "/proc/self/fd/%d", fd);
    ENDS(0, linkat(AT_FDCWD, name_256, AT_FDCWD, "from-tmp", AT_SYMLINK_FOLLOW), "and gets one");
    SAME(5, stat_of("from-tmp").st_size, "with what was written");
    SAME(0640, mode_of("from-tmp"), "and its mode");
    close(fd);
    memset(name_256, 'n', 256);
}

/* `content`, which has 8192 bytes, opened to append: a page that is stored into is no write that appends. */
static void test_appended_and_mapped(void)
{
    char text[8];
    int fd = open("content", O_RDWR | O_APPEND);
    char *map = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    check(map != MAP_FAILED, strerror(errno), "a shared mapping of a file with O_APPEND");
    if (map == MAP_FAILED)
        return;
    memcpy(map + 200, "page", 4);
    ENDS(0, msync(map, 8192, MS_SYNC), "msync of it");
    munmap(map, 8192);
    close(fd);
    SAME(8192, stat_of("content").st_size, "a page is not appended");
    fd = open("content", O_RDONLY);
    SAME(1, pread(fd, text, 4, 200) == 4 && !memcmp(text, "page", 4), "it is where it was stored");
    close(fd);
}

static void test_contents(void)
{
    char *map, text[8192];
    int fd = open("content", O_RDWR | O_CREAT | O_TRUNC, 0644);

    for (int at = 0; at < 8192; at++)
        text[at] = at % 251;
    SAME(8192, write(fd, text, 8192), "8192 bytes written");
    map = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    check(map != MAP_FAILED, strerror(errno), "a shared mapping");
    if (map != MAP_FAILED) {
        SAME(0, memcmp(map, text, 8192), "shows what was written");
        must(pwrite(fd, "written", 7, 4090), "pwrite");
        SAME(0, memcmp(map + 4090, "written", 7), "shows what is written now");
        memcpy(map + 100, "mapped", 6);
        ENDS(0, msync(map, 8192, MS_SYNC), "msync");
        SAME(1, pread(fd, text, 6, 100) == 6 && !memcmp(text, "mapped", 6), "what is stored is read");
        munmap(map, 8192);
    }
    test_appended_and_mapped();
    map = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    check(map != MAP_FAILED, strerror(errno), "a private mapping");
    if (map != MAP_FAILED) {
        map[0] = 'P';
        SAME(1, pread(fd, text, 1, 0) == 1 && text[0] != 'P', "what is stored in a private mapping stays there");
        munmap(map, 8192);
    }
    ENDS(0, fallocate(fd, 0, 0, 100000), "fallocate");
    SAME(100000, stat_of("content").st_size, "fallocate makes it longer");
    ENDS(0, fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 200000), "fallocate, keep size");
    SAME(100000, stat_of("content").st_size, "which it keeps");
    ENDS(0, fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), "punch a hole");
    SAME(1, pread(fd, text, 1, 100) == 1 && text[0] == 0, "a hole is zero");
    ENDS(EINVAL, fallocate(fd, 0, 0, 0), "fallocate of nothing");
    ENDS(EINVAL, fallocate(fd, 0, -1, 10), "fallocate at a negative offset");
    ENDS(0, ftruncate(fd, 0), "ftruncate to nothing");
    ENDS(0, ftruncate(fd, 1 << 20), "ftruncate to 1 MiB");
    must(pwrite(fd, "x", 1, 1 << 19), "pwrite");
    SAME(1, lseek(fd, 0, SEEK_DATA) <= 1 << 19, "SEEK_DATA finds the data");
    SAME(1, lseek(fd, 0, SEEK_HOLE) >= 0, "SEEK_HOLE finds a hole");
    ENDS(ENXIO, lseek(fd, 2 << 20, SEEK_DATA), "SEEK_DATA behind the end");
    int to = open("copied", O_RDWR | O_CREAT | O_TRUNC, 0644);
    loff_t in = (1 << 19) - 10, out = 0;
    SAME(100, copy_file_range(fd, &in, to, &out, 100, 0), "copy_file_range");
    SAME(1, pread(to, text, 11, 0) == 11 && text[10] == 'x', "what was copied");
    ENDS(EINVAL, copy_file_range(fd, NULL, to, NULL, 100, 99), "copy_file_range with flags");
    close(to);
    close(fd);
    SAME(0, truncate("content", 5) || stat_of("content").st_size != 5, "truncate by path");
}

static void test_xattrs(void)
{
    char value[70000], list[4096];
    int fd;

    put("attributed", "", 0644);
    if (TRY(setxattr("attributed", "user.one", "1", 1, 0)) == EOPNOTSUPP) {
        printf("no extended attributes here\n");
        return;
    }
    ENDS(EEXIST, setxattr("attributed", "user.one", "1", 1, XATTR_CREATE), "create an attribute that is there");
    ENDS(ENODATA, setxattr("attributed", "user.two", "2", 1, XATTR_REPLACE), "replace an attribute that is not there");
    ENDS(0, setxattr("attributed", "user.two", "", 0, XATTR_CREATE), "an empty attribute");
    SAME(1, getxattr("attributed", "user.one", value, 10), "an attribute's size");
    SAME(1, getxattr("attributed", "user.one", NULL, 0), "an attribute's size alone");
    SAME(0, getxattr("attributed", "user.two", value, 10), "an empty attribute's size");
    ENDS(ENODATA, getxattr("attributed", "user.three", value, 10), "an attribute that is not there");
    ENDS(0, setxattr("attributed", "user.one", "1234", 4, 0), "change an attribute");
    ENDS(ERANGE, getxattr("attributed", "user.one", value, 2), "an attribute and too little room");
    SAME(18, listxattr("attributed", list, sizeof list), "the list of attributes");
    SAME(18, listxattr("attributed", NULL, 0), "the size of the list");
    ENDS(ERANGE, listxattr("attributed", list, 3), "a list and too little room");
    ENDS(0, removexattr("attributed", "user.one"), "remove an attribute");
    ENDS(ENODATA, removexattr("attributed", "user.one"), "remove it again");
    ENDS(E2BIG, setxattr("attributed", "user.big", value, 70000, 0), "an attribute that is too large");
    ENDS(ERANGE, setxattr("attributed", "user.", "1", 1, 0) && errno == EINVAL ? (errno = ERANGE, -1) : -1, "no name");
    ENDS(EOPNOTSUPP, setxattr("attributed", "nothing.one", "1", 1, 0), "an unknown class of attributes");
    fd = open("attributed", O_RDWR);
    ENDS(0, fsetxattr(fd, "user.fd", "fd", 2, 0), "an attribute by fd");
    SAME(2, fgetxattr(fd, "user.fd", value, 10), "and back");
    close(fd);
    ENDS(EPERM, symlink("x", "linked-attr") ? -1 : lsetxattr("linked-attr", "user.one", "1", 1, 0), "a user's of a link");
}

static void test_directories(void)
{
    enum { MANY = 500 };
    char name[300], seen[MANY] = {0};
    int others = 0, twice = 0, count = 0;
    struct dirent *entry;
    long places[MANY + 8];
    DIR *dir;

    must(mkdir("many", 0755), "many");
    for (int at = 0; at < MANY; at++) {
        snprintf(name, sizeof name, "many/%d", at);
        put(name, "", 0644);
    }
    dir = opendir("many");
    while ((places[count < MANY + 7 ? count : 0] = telldir(dir), entry = readdir(dir))) {
        int number = entry->d_name[0] == '.' ? -1 : atoi(entry->d_name);

        count++;
        if (number < 0)
            others++;
        else
            twice += seen[number]++;
    }
    SAME(MANY + 2, count, "readdir gives all entries");
    SAME(2, others, "readdir gives dot and dot-dot");
    SAME(0, twice, "readdir gives none twice");
    seekdir(dir, places[count / 2]);
    for (others = 0; readdir(dir); others++)
        ;
    SAME(count - count / 2, others, "seekdir goes on in the middle");
    rewinddir(dir);
    for (count = 0; (entry = readdir(dir));)
        if (entry->d_name[0] != '.') {
            snprintf(name, sizeof name, "many/%s", entry->d_name);
            count += !unlink(name);
        }
    closedir(dir);
    SAME(MANY, count, "unlink while reading reaches all");
    ENDS(0, rmdir("many"), "and the directory is empty");
    must(mkdir("gone", 0755), "gone");
    int fd = open("gone", O_RDONLY | O_DIRECTORY);
    ENDS(0, rmdir("gone"), "rmdir what is open");
    ENDS(ENOENT, openat(fd, "new", O_CREAT | O_WRONLY, 0644), "create in what is removed");
    close(fd);
    must(mkdir("parent", 0755), "parent");
    SAME(2, stat_of("parent").st_nlink, "links of an empty directory");
    must(mkdir("parent/child", 0755), "child");
    SAME(3, stat_of("parent").st_nlink, "links of a directory with one");
    SAME(stat_of("parent").st_ino, stat_of("parent/child/..").st_ino, "dot-dot is the parent");
    ENDS(0, rmdir("parent/child"), "rmdir");
    SAME(2, stat_of("parent").st_nlink, "links of an empty directory again");
    fd = open("parent", O_RDONLY | O_DIRECTORY);
    ENDS(0, fsync(fd), "fsync of a directory");
    ENDS(EISDIR, read(fd, name, 1), "read of a directory");
    close(fd);
}

static int lock_it(void *a)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 10};
    int fd = open("locked", O_RDWR), error = TRY(fcntl(fd, F_SETLK, &lock));

    (void)a;
    close(fd);
    return error == EACCES ? EAGAIN : error;
}
static int flock_it(void *a)
{
    int fd = open("locked", O_RDWR), error = TRY(flock(fd, LOCK_EX | LOCK_NB));

    (void)a;
    close(fd);
    return error;
}

static void test_locks(void)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 10};
    int fd;

    put("locked", "", 0666);
    fd = open("locked", O_RDWR);
    ENDS(0, fcntl(fd, F_SETLK, &lock), "a lock");
    SAME(EAGAIN, as(0, 0, lock_it, NULL), "which another has not");
    lock.l_type = F_UNLCK;
    ENDS(0, fcntl(fd, F_SETLK, &lock), "no lock any more");
    SAME(0, as(0, 0, lock_it, NULL), "another has it");
    ENDS(0, flock(fd, LOCK_EX), "flock");
    SAME(EAGAIN, as(0, 0, flock_it, NULL), "flock: another has not");
    ENDS(0, flock(fd, LOCK_UN), "flock: given up");
    SAME(0, as(0, 0, flock_it, NULL), "flock: another has");
    close(fd);
}

static void test_many_writers(void)
{
    enum { WRITERS = 4, LINES = 200 };
    char line[64], *text;
    int fd, good = 1, status;
    struct stat found;

    fflush(stdout);
    put("log", "", 0644);
    for (int writer = 0; writer < WRITERS; writer++)
        if (fork() == 0) {
            fd = open("log", O_WRONLY | O_APPEND);
            memset(line, 'a' + writer, 63);
            line[63] = '\n';
            for (int at = 0; at < LINES; at++)
                if (write(fd, line, 64) != 64)
                    _exit(1);
            _exit(0);
        }
    for (int writer = 0; writer < WRITERS; writer++)
        good &= wait(&status) > 0 && status == 0;
    SAME(1, good, "writers that append");
    found = stat_of("log");
    SAME(WRITERS * LINES * 64, found.st_size, "nothing is lost of what they append");
    text = calloc(1, found.st_size + 1);
    fd = open("log", O_RDONLY);
    good = read(fd, text, found.st_size) == found.st_size;
    for (off_t at = 0; at + 64 <= found.st_size; at += 64)
        for (int column = 0; column < 63; column++)
            good &= text[at + column] == text[at];
    SAME(1, good, "and nothing is mixed");
    close(fd);
    free(text);
    fflush(stdout);
    for (int writer = 0; writer < WRITERS; writer++)
        if (fork() == 0) {
            int made = 0;

            for (int at = 0; at < 50; at++) {
                snprintf(line, sizeof line, "racing-%d", at);
                made += !closed(open(line, O_CREAT | O_EXCL | O_WRONLY, 0644));
            }
            _exit(made);
        }
    for (status = good = 0; wait(&status) > 0;)
        good += WEXITSTATUS(status);
    SAME(50, good, "each exclusive creation succeeds once");
}

int main(int count, char **words)
{
    char place[64];
    struct statfs statistics;

    if (count != 2 || chdir(words[1]) || geteuid()) {
        fprintf(stderr, "posix DIRECTORY, as root\n");
        return 2;
    }
    umask(022);
    signal(SIGXFSZ, SIG_IGN);
    snprintf(place, sizeof place, "posix.%d", getpid());
    if (mkdir(place, 0777) || chdir(place))
        return 2;
    must(chmod(".", 0777), ".");
    memset(name_255, 'n', 255);
    memset(name_256, 'n', 256);
    for (int at = 0; at < 4096; at++)
        path_4096[at] = at % 2 ? '/' : 'p';
    memcpy(path_4095, path_4096, 4095);
    ENDS(0, statfs(".", &statistics), "statfs");
    SAME(255, statistics.f_namelen, "statfs: the length of names");
    check(statistics.f_blocks > 0, "none", "statfs: blocks");
    test_paths();
    test_types();
    test_renames();
    test_modes();
    test_owners();
    test_times();
    test_opens();
    test_contents();
    test_xattrs();
    test_directories();
    test_locks();
    test_many_writers();
    printf("%d checks, %d failures\n", checks, failures);
    return failures != 0;
}
