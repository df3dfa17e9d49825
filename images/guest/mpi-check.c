/*
 * Proves that MPI programs run on this cluster: every rank exchanges data with every other and checks what it received.
 *
 * The check of vcluster starts one rank on each node. A rank fills a block for each rank, exchanges the blocks by
 * MPI_Alltoall and compares every byte. It also reads the counters of lab0 before and after: a node that has company must
 * have sent and received at least the payload there. A rank prints "NAME ok" or "NAME REASON", and the whole line is one
 * write, so that lines of ranks do not mix.
 */
#define _GNU_SOURCE /* RTLD_NEXT */
#include <dlfcn.h>
#include <mpi.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>

enum { BLOCK = 8192 }; /* bytes for each other rank: MPICH sends blocks of this size directly, not through other ranks */
enum { PAUSE_MAX = 100 }; /* milliseconds between two checks for messages, at most */
enum { SETS_MAX = 16 };

static unsigned char pattern(int from, int to, int at)
{
    return (unsigned char)(from * 31 + to * 17 + at * 7 + at / 256);
}

static long long counter(const char *name)
{
    char path[128];
    long long value = -1;
    snprintf(path, sizeof path, "/sys/class/net/lab0/statistics/%s", name);
    FILE *file = fopen(path, "r");
    if (file) {
        if (fscanf(file, "%lld", &value) != 1)
            value = -1;
        fclose(file);
    }
    return value;
}

/* The epoll sets of UCX. A set is readable when one of its descriptors has an event. */
static struct pollfd sets[SETS_MAX];
static nfds_t set_count;

int epoll_create(int size)
{
    (void)size; /* epoll_create(2): ignored, but must be positive */
    int set = epoll_create1(0);
    if (set >= 0 && set_count < SETS_MAX)
        sets[set_count++] = (struct pollfd){.fd = set, .events = POLLIN};
    return set;
}

/*
 * Replaces the function of UCX that MPICH calls in a loop while it waits, also in MPI_Finalize. MPICH would occupy the
 * processor, which other nodes share under emulation: ranks that wait would slow down the one they wait for. So a rank
 * sleeps until a descriptor has an event. The limit is for work that has no descriptor.
 */
unsigned ucp_worker_progress(void *worker)
{
    static unsigned (*progress)(void *);
    static int pause;
    if (!progress)
        *(void **)&progress = dlsym(RTLD_NEXT, "ucp_worker_progress");
    unsigned events = progress(worker);
    if (events)
        pause = 0;
    else {
        pause = pause * 2 + 1 > PAUSE_MAX ? PAUSE_MAX : pause * 2 + 1;
        poll(sets, set_count, pause);
    }
    return events;
}

/* UCX has a thread for events. It calls this in a loop while the main thread holds a lock, and would slow that down. */
int sched_yield(void)
{
    return poll(NULL, 0, 1);
}

int main(int argc, char **argv)
{
    int rank, size, length, wrong = 0;
    char name[MPI_MAX_PROCESSOR_NAME];
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* mpiexec makes a session for each rank, so only its parent can end it */
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Get_processor_name(name, &length);

    unsigned char *out = malloc((size_t)size * BLOCK), *in = calloc((size_t)size, BLOCK);
    if (!out || !in) {
        printf("%s has no memory for %d blocks\n", name, size);
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    for (int to = 0; to < size; to++)
        for (int at = 0; at < BLOCK; at++)
            out[to * BLOCK + at] = pattern(rank, to, at);
    long long sent = counter("tx_bytes"), received = counter("rx_bytes"), payload = (long long)(size - 1) * BLOCK;
    MPI_Barrier(MPI_COMM_WORLD); /* no rank sends before all have read their counters */
    MPI_Alltoall(out, BLOCK, MPI_BYTE, in, BLOCK, MPI_BYTE, MPI_COMM_WORLD);
    for (int from = 0; from < size; from++)
        for (int at = 0; at < BLOCK; at++)
            wrong += in[from * BLOCK + at] != pattern(from, rank, at);
    MPI_Barrier(MPI_COMM_WORLD); /* every rank has received its blocks, so this one has sent them */
    sent = counter("tx_bytes") - sent;
    received = counter("rx_bytes") - received;

    if (wrong)
        printf("%s received %d wrong bytes\n", name, wrong);
    else if (size > 1 && (sent < payload || received < payload))
        printf("%s counted %lld bytes sent and %lld received on lab0, not %lld\n", name, sent, received, payload);
    else
        printf("%s ok\n", name);
    MPI_Finalize();
    return 0;
}
