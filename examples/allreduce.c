/*
 * Allreduce: every rank has a list of numbers. MPI adds all lists, and every rank receives the sums.
 *
 *     mpiexec -n 4 ./allreduce [NUMBERS [ROUNDS]]
 *
 * NUMBERS is the length of the lists. The clock measures ROUNDS additions. Every rank compares its sums with a formula.
 */

#include "example.h"

/* Number i of the list of a rank. */
static double number(int rank, long i)
{
    return (rank + 1) * (i % 100 + 1);
}

/* Number i of the result: 1 + 2 + ... + ranks is ranks * (ranks + 1) / 2. All of it is exact in a double. */
static double expected_sum(int ranks, long i)
{
    return ranks * (ranks + 1.0) / 2 * (i % 100 + 1);
}

int main(int argc, char **argv)
{
    struct argument arguments[] = {{"NUMBERS", 1024, 1 << 20}, {"ROUNDS", 20, 1000000}};
    int rank, ranks, exit_code = DONE;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    read_arguments(argc, argv, 2, arguments);
    long numbers = arguments[0].value, rounds = arguments[1].value;

    double *own = malloc(numbers * sizeof *own), *sums = calloc(numbers, sizeof *sums);
    for (long i = 0; i < numbers; i++)
        own[i] = number(rank, i);

    MPI_Barrier(MPI_COMM_WORLD); /* all ranks start together */
    double start = MPI_Wtime();
    for (long round = 0; round < rounds; round++)
        MPI_Allreduce(own, sums, numbers, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    double seconds = MPI_Wtime() - start, slowest = 0, total = 0;

    long wrong = 0, wrong_anywhere = 0;
    for (long i = 0; i < numbers; i++) {
        wrong += sums[i] != expected_sum(ranks, i);
        total += sums[i];
    }

    /* The slowest rank counts: the operation is complete when the last rank has its sums. */
    MPI_Reduce(&seconds, &slowest, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    MPI_Reduce(&wrong, &wrong_anywhere, 1, MPI_LONG, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0 && wrong_anywhere != 0)
        printf("allreduce: FAILED: %ld sums on all ranks together are wrong\n", wrong_anywhere);
    else if (rank == 0)
        printf("allreduce: ranks=%d numbers=%ld rounds=%ld total=%.0f mean_us=%.1f\n", ranks, numbers, rounds, total,
               slowest / rounds * 1e6);
    if (wrong != 0 || wrong_anywhere != 0)
        exit_code = CHECK_FAILED;

    free(own);
    free(sums);
    MPI_Finalize();
    return exit_code;
}
