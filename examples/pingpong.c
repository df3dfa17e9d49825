/*
 * Ping-pong: rank 0 sends a message to rank 1, and rank 1 sends it back. The clock measures the round trip.
 *
 *     mpiexec -n 2 ./pingpong [BYTES [ROUNDS]]
 *
 * BYTES is the size of the message. Small messages show the latency of the network, large ones its bandwidth.
 * Rank 0 compares each message that returns with the one that it sent.
 */

#include "example.h"
#include <string.h>

/* The measurements of rank 0. */
struct result {
    double total_s, fastest_s;
    long damaged; /* messages that returned with other bytes */
};

/* Rank 0: sends a different message in each round, and waits for it. Only sending and receiving are timed. */
static struct result ping(int bytes, long rounds)
{
    char *sent = malloc(bytes), *returned = malloc(bytes);
    struct result result = {0, 0, 0};

    for (long round = 0; round < rounds; round++) {
        memset(sent, 'a' + round % 26, bytes);
        double start = MPI_Wtime();
        MPI_Send(sent, bytes, MPI_CHAR, 1, 0, MPI_COMM_WORLD);
        MPI_Recv(returned, bytes, MPI_CHAR, 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        double seconds = MPI_Wtime() - start;

        result.total_s += seconds;
        if (round == 0 || seconds < result.fastest_s)
            result.fastest_s = seconds;
        result.damaged += memcmp(sent, returned, bytes) != 0;
    }
    free(sent);
    free(returned);
    return result;
}

/* Rank 1: returns each message. */
static void pong(int bytes, long rounds)
{
    char *message = malloc(bytes);
    for (long round = 0; round < rounds; round++) {
        MPI_Recv(message, bytes, MPI_CHAR, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        MPI_Send(message, bytes, MPI_CHAR, 0, 0, MPI_COMM_WORLD);
    }
    free(message);
}

int main(int argc, char **argv)
{
    struct argument arguments[] = {{"BYTES", 65536, 16 << 20}, {"ROUNDS", 50, 1000000}};
    int rank, ranks, exit_code = DONE;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    read_arguments(argc, argv, 2, arguments);
    if (ranks != 2)
        refuse(argv[0], "ping-pong needs exactly 2 ranks: mpiexec -n 2");
    int bytes = arguments[0].value;
    long rounds = arguments[1].value;

    MPI_Barrier(MPI_COMM_WORLD); /* opens the connection, so that the first round is like the others */
    if (rank == 0) {
        struct result result = ping(bytes, rounds);
        if (result.damaged != 0) {
            printf("pingpong: FAILED: %ld of %ld messages returned damaged\n", result.damaged, rounds);
            exit_code = CHECK_FAILED;
        } else {
            printf("pingpong: bytes=%d rounds=%ld carried=%lld mean_us=%.1f fastest_us=%.1f\n", bytes, rounds,
                   2LL * bytes * rounds, result.total_s / rounds * 1e6, result.fastest_s * 1e6);
        }
    } else {
        pong(bytes, rounds);
    }
    MPI_Finalize();
    return exit_code;
}
