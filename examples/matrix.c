/*
 * Matrix product: C = A * B, three square matrices of SIZE rows. Each rank computes an equal share of the rows of C.
 *
 *     mpiexec -n 4 ./matrix [SIZE]
 *
 * Rank 0 makes A and B. It deals the rows of A out (scatter), gives B to all (broadcast), and collects C (gather).
 * Then it checks C without computing it again: for any vector x, C * x must be equal to A * (B * x).
 */

#include "example.h"

enum { SEED_A = 1, SEED_B = 2, SEED_X = 3 };

/* Fills a list with whole numbers from 0 to 99. The same seed makes the same numbers, on any machine. */
static void fill(int *list, long count, unsigned int seed)
{
    for (long i = 0; i < count; i++) {
        seed = seed * 1103515245u + 12345u;
        list[i] = (seed >> 16) % 100;
    }
}

/* c = a * b, for some rows of a and c. The innermost loop reads memory in order, which is fast. */
static void multiply(const int *a, const int *b, int *c, int rows, int size)
{
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < size; k++)
            for (int j = 0; j < size; j++)
                c[i * size + j] += a[i * size + k] * b[k * size + j];
}

/* y = matrix * x. */
static void apply(const int *matrix, const long long *x, long long *y, int size)
{
    for (int i = 0; i < size; i++) {
        y[i] = 0;
        for (int j = 0; j < size; j++)
            y[i] += matrix[i * size + j] * x[j];
    }
}

/* The number of rows in which C * x differs from A * (B * x). */
static int count_wrong_rows(const int *a, const int *b, const int *c, int size)
{
    int *numbers = malloc(size * sizeof *numbers), wrong = 0;
    long long *vectors = malloc(4 * size * sizeof *vectors);
    long long *x = vectors, *bx = x + size, *abx = bx + size, *cx = abx + size;

    fill(numbers, size, SEED_X);
    for (int i = 0; i < size; i++)
        x[i] = numbers[i] + 1;
    apply(b, x, bx, size);
    apply(a, bx, abx, size);
    apply(c, x, cx, size);
    for (int i = 0; i < size; i++)
        wrong += cx[i] != abx[i];
    free(numbers);
    free(vectors);
    return wrong;
}

/* One number that depends on every element of C and on its place. */
static long long checksum(const int *c, long count)
{
    long long sum = 0;
    for (long i = 0; i < count; i++)
        sum = (sum * 31 + c[i]) % 1000000007;
    return sum;
}

int main(int argc, char **argv)
{
    struct argument argument = {"SIZE", 240, 2000};
    int *a = NULL, *c = NULL;
    int rank, ranks, exit_code = DONE;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    read_arguments(argc, argv, 1, &argument);
    int size = argument.value;
    if (size % ranks != 0)
        refuse(argv[0], "SIZE must be a multiple of the number of ranks");

    /* B whole, and this rank's share of A and C: on every rank. A and C whole: on rank 0 only. */
    int rows = size / ranks, share = rows * size, all = size * size;
    int *b = malloc(all * sizeof *b), *a_share = malloc(share * sizeof *a), *c_share = calloc(share, sizeof *c);
    if (rank == 0) {
        a = malloc(all * sizeof *a);
        c = malloc(all * sizeof *c);
        fill(a, all, SEED_A);
        fill(b, all, SEED_B);
    }

    double start = MPI_Wtime();
    MPI_Scatter(a, share, MPI_INT, a_share, share, MPI_INT, 0, MPI_COMM_WORLD);
    MPI_Bcast(b, all, MPI_INT, 0, MPI_COMM_WORLD);
    multiply(a_share, b, c_share, rows, size);
    MPI_Gather(c_share, share, MPI_INT, c, share, MPI_INT, 0, MPI_COMM_WORLD);
    double seconds = MPI_Wtime() - start;

    if (rank == 0) {
        int wrong = count_wrong_rows(a, b, c, size);
        if (wrong != 0) {
            printf("matrix: FAILED: %d of %d rows are wrong\n", wrong, size);
            exit_code = CHECK_FAILED;
        } else {
            printf("matrix: ranks=%d size=%d checksum=%lld seconds=%.3f\n", ranks, size, checksum(c, all), seconds);
        }
    }
    free(a);
    free(b);
    free(c);
    free(a_share);
    free(c_share);
    MPI_Finalize();
    return exit_code;
}
