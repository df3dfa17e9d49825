/*
 * Ring: a token travels from rank to rank, and from the last rank back to rank 0.
 *
 *     mpiexec -n 4 ./ring [ROUNDS]
 *
 * Each rank appends its own digit, its rank plus 1. So one round over four ranks makes the token 1234, which shows the
 * order of the visits. A longer token would not fit into a number, so each rank keeps only the remainder of a division.
 */

#include "example.h"

/* The token after a visit to this rank. */
static long long visit(long long token, int rank)
{
    return (token * 10 + rank + 1) % 1000000007;
}

/* The same journey without MPI, to compare with. */
static long long expected_token(int ranks, long rounds)
{
    long long token = 0;
    for (long round = 0; round < rounds; round++)
        for (int rank = 0; rank < ranks; rank++)
            token = visit(token, rank);
    return token;
}

int main(int argc, char **argv)
{
    struct argument rounds = {"ROUNDS", 1, 1000000};
    long long token = 0;
    int rank, ranks, exit_code = DONE;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    read_arguments(argc, argv, 1, &rounds);
    if (ranks < 2)
        refuse(argv[0], "a ring needs at least 2 ranks: mpiexec -n 2");

    int next = (rank + 1) % ranks, previous = (rank + ranks - 1) % ranks;
    for (long round = 0; round < rounds.value; round++) {
        if (rank == 0) { /* rank 0 sends first; if all waited first, nothing would ever move */
            token = visit(token, rank);
            MPI_Send(&token, 1, MPI_LONG_LONG, next, 0, MPI_COMM_WORLD);
            MPI_Recv(&token, 1, MPI_LONG_LONG, previous, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else {
            MPI_Recv(&token, 1, MPI_LONG_LONG, previous, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            token = visit(token, rank);
            MPI_Send(&token, 1, MPI_LONG_LONG, next, 0, MPI_COMM_WORLD);
        }
    }

    if (rank == 0) {
        long long expected = expected_token(ranks, rounds.value);
        if (token != expected) {
            printf("ring: FAILED: the token is %lld instead of %lld\n", token, expected);
            exit_code = CHECK_FAILED;
        } else {
            printf("ring: ranks=%d rounds=%ld token=%lld\n", ranks, rounds.value, token);
        }
    }
    MPI_Finalize();
    return exit_code;
}
