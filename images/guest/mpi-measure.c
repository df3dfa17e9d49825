/*
 * Measures operations of MPI between nodes, one rank on each. vcluster measure starts it and sends it commands.
 *
 * Rank 0 reads commands from standard input, a line each, and answers each with a line of JSON on standard output:
 *   pingpong FIRST SECOND BYTES WINDOW SKIPPED COUNT   {"ns": [...]}: times for a message there and one back
 *   stream FIRST SECOND BYTES WINDOW SKIPPED COUNT     times for WINDOW messages there and one of a byte back
 *   NAME 0 0 BYTES WINDOW SKIPPED COUNT                times of a collective operation: the longest of all ranks
 *   sent 0 0 0 0 0 1                                   {"ns": [BYTES]}: what all ranks have sent by TCP so far
 * The first SKIPPED times are left out. It ends at the end of its input. Its first line is {"nodes": [...], "library"}.
 */
#include <linux/tcp.h>
#include <mpi.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

enum { COMMAND_TAG = 1, DATA_TAG, RESULT_TAG };
enum { PAUSE = 5 }; /* milliseconds between two looks for a command: a rank that waits must not occupy a processor */
enum { DESCRIPTORS_MAX = 1024, COUNT_MAX = 10000 };

struct command {
    char name[16];
    int first, second, bytes, window, skipped, count;
};

static int rank, size;

static long long now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void fail(const char *reason)
{
    fprintf(stderr, "mpi-measure: %s\n", reason);
    MPI_Abort(MPI_COMM_WORLD, 1);
}

static void wait_idle(MPI_Request *request)
{
    int done = 0;
    while (MPI_Test(request, &done, MPI_STATUS_IGNORE), !done)
        poll(NULL, 0, PAUSE);
}

/* The bytes that this process has sent over its TCP connections, also those that it sent again. */
static long long sent_bytes(void)
{
    long long sum = 0;
    for (int descriptor = 0; descriptor < DESCRIPTORS_MAX; descriptor++) {
        struct tcp_info info = {0};
        socklen_t length = sizeof info;
        if (!getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, &info, &length))
            sum += (long long)info.tcpi_bytes_sent;
    }
    return sum;
}

static void pingpong(const struct command *this, char *buffer)
{
    int other = rank == this->first ? this->second : this->first;
    if (rank == this->first)
        MPI_Send(buffer, this->bytes, MPI_BYTE, other, DATA_TAG, MPI_COMM_WORLD);
    MPI_Recv(buffer, this->bytes, MPI_BYTE, other, DATA_TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    if (rank == this->second)
        MPI_Send(buffer, this->bytes, MPI_BYTE, other, DATA_TAG, MPI_COMM_WORLD);
}

static void stream(const struct command *this, char *buffer)
{
    MPI_Request *requests = malloc((size_t)this->window * sizeof *requests);
    char end = 0;
    if (!requests)
        fail("no memory for requests");
    for (int at = 0; at < this->window; at++)
        if (rank == this->first)
            MPI_Isend(buffer, this->bytes, MPI_BYTE, this->second, DATA_TAG, MPI_COMM_WORLD, &requests[at]);
        else
            MPI_Irecv(buffer + (size_t)at * this->bytes, this->bytes, MPI_BYTE, this->first, DATA_TAG, MPI_COMM_WORLD,
                      &requests[at]);
    MPI_Waitall(this->window, requests, MPI_STATUSES_IGNORE);
    if (rank == this->first)
        MPI_Recv(&end, 1, MPI_BYTE, this->second, DATA_TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    else
        MPI_Send(&end, 1, MPI_BYTE, this->first, DATA_TAG, MPI_COMM_WORLD);
    free(requests);
}

static int is_collective(const char *name)
{
    static const char *const names[] = {"barrier", "bcast", "reduce", "allreduce", "gather", "scatter", "allgather",
                                        "alltoall"};
    for (size_t at = 0; at < sizeof names / sizeof *names; at++)
        if (!strcmp(name, names[at]))
            return 1;
    return 0;
}

/* One collective operation. BYTES is the part of each rank; the second half of the buffer receives. */
static void collective(const char *name, int bytes, char *out, char *in)
{
    if (!strcmp(name, "barrier"))
        MPI_Barrier(MPI_COMM_WORLD);
    else if (!strcmp(name, "bcast"))
        MPI_Bcast(out, bytes, MPI_BYTE, 0, MPI_COMM_WORLD);
    else if (!strcmp(name, "reduce"))
        MPI_Reduce(out, in, bytes, MPI_BYTE, MPI_BOR, 0, MPI_COMM_WORLD);
    else if (!strcmp(name, "allreduce"))
        MPI_Allreduce(out, in, bytes, MPI_BYTE, MPI_BOR, MPI_COMM_WORLD);
    else if (!strcmp(name, "gather"))
        MPI_Gather(out, bytes, MPI_BYTE, in, bytes, MPI_BYTE, 0, MPI_COMM_WORLD);
    else if (!strcmp(name, "scatter"))
        MPI_Scatter(out, bytes, MPI_BYTE, in, bytes, MPI_BYTE, 0, MPI_COMM_WORLD);
    else if (!strcmp(name, "allgather"))
        MPI_Allgather(out, bytes, MPI_BYTE, in, bytes, MPI_BYTE, MPI_COMM_WORLD);
    else
        MPI_Alltoall(out, bytes, MPI_BYTE, in, bytes, MPI_BYTE, MPI_COMM_WORLD);
}

static char *new_buffer(size_t bytes)
{
    char *buffer = calloc(bytes ? bytes : 1, 1);
    if (!buffer)
        fail("no memory for the data");
    memset(buffer, 1, bytes); /* pages that were never written would be read from one page of zeros */
    return buffer;
}

static void run_pair(const struct command *this, long long *times)
{
    int is_stream = !strcmp(this->name, "stream");
    char *buffer = new_buffer((size_t)this->bytes * (is_stream ? (size_t)this->window : 1));
    for (int at = -this->skipped; at < this->count; at++) {
        long long begin = now_ns();
        if (is_stream)
            stream(this, buffer);
        else
            pingpong(this, buffer);
        if (at >= 0)
            times[at] = now_ns() - begin;
    }
    free(buffer);
}

static void run_collective(const struct command *this, long long *times, long long *longest)
{
    char *out = new_buffer((size_t)this->bytes * (size_t)size), *in = new_buffer((size_t)this->bytes * (size_t)size);
    for (int at = -this->skipped; at < this->count; at++) {
        MPI_Barrier(MPI_COMM_WORLD);
        long long begin = now_ns();
        collective(this->name, this->bytes, out, in);
        if (at >= 0)
            times[at] = now_ns() - begin;
    }
    MPI_Reduce(times, longest, this->count, MPI_LONG_LONG, MPI_MAX, 0, MPI_COMM_WORLD);
    free(out);
    free(in);
}

/* Carry out a command; rank 0 gets the results. */
static void run(const struct command *this, long long *times, long long *results)
{
    if (!strcmp(this->name, "sent")) {
        times[0] = sent_bytes();
        MPI_Reduce(times, results, 1, MPI_LONG_LONG, MPI_SUM, 0, MPI_COMM_WORLD);
    } else if (is_collective(this->name)) {
        run_collective(this, times, results);
    } else {
        if (rank == this->first || rank == this->second)
            run_pair(this, times);
        if (this->first == 0 && rank == 0)
            memcpy(results, times, (size_t)this->count * sizeof *times);
        else if (rank == this->first)
            MPI_Send(times, this->count, MPI_LONG_LONG, 0, RESULT_TAG, MPI_COMM_WORLD);
        else if (rank == 0) {
            MPI_Request request;
            MPI_Irecv(results, this->count, MPI_LONG_LONG, this->first, RESULT_TAG, MPI_COMM_WORLD, &request);
            wait_idle(&request);
        }
    }
}

static void introduce(void)
{
    char name[MPI_MAX_PROCESSOR_NAME] = "", library[MPI_MAX_LIBRARY_VERSION_STRING];
    char *names = new_buffer((size_t)size * sizeof name);
    int length;
    MPI_Get_processor_name(name, &length);
    MPI_Gather(name, sizeof name, MPI_CHAR, names, sizeof name, MPI_CHAR, 0, MPI_COMM_WORLD);
    MPI_Get_library_version(library, &length);
    if (rank == 0) {
        printf("{\"nodes\": [");
        for (int at = 0; at < size; at++)
            printf("%s\"%s\"", at ? ", " : "", names + (size_t)at * sizeof name);
        printf("], \"library\": \"");
        for (const char *at = library; *at && *at != '\n'; at++)
            putchar(*at == '"' || *at == '\\' || *at < ' ' ? ' ' : *at);
        printf("\"}\n");
        fflush(stdout);
    }
    free(names);
}

/* Read a command and send it to all ranks. The last one has no name. */
static void next_command(struct command *this)
{
    char line[256];
    memset(this, 0, sizeof *this);
    if (fgets(line, sizeof line, stdin)
        && sscanf(line, "%15s %d %d %d %d %d %d", this->name, &this->first, &this->second, &this->bytes, &this->window,
                  &this->skipped, &this->count) != 7)
        fail("a command that it does not know");
    if (this->count < 0 || this->count > COUNT_MAX || this->first < 0 || this->first >= size || this->second < 0
        || this->second >= size || this->bytes < 0 || this->window < 0 || this->skipped < 0)
        fail("a command with a value that is not possible");
    for (int to = 1; to < size; to++)
        MPI_Send(this, sizeof *this, MPI_BYTE, to, COMMAND_TAG, MPI_COMM_WORLD);
}

int main(int argc, char **argv)
{
    struct command this;
    static long long times[COUNT_MAX], results[COUNT_MAX];
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* mpiexec makes a session for each rank, so only its parent can end it */
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    introduce();
    for (;;) {
        if (rank == 0)
            next_command(&this);
        else {
            MPI_Request request;
            MPI_Irecv(&this, sizeof this, MPI_BYTE, 0, COMMAND_TAG, MPI_COMM_WORLD, &request);
            wait_idle(&request);
        }
        if (!this.name[0])
            break;
        run(&this, times, results);
        if (rank == 0) {
            printf("{\"ns\": [");
            for (int at = 0; at < this.count; at++)
                printf("%s%lld", at ? "," : "", results[at]);
            printf("]}\n");
            fflush(stdout);
        }
    }
    MPI_Finalize();
    return 0;
}
