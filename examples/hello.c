/*
 * Hello world: each rank reports the node that it runs on. Rank 0 collects the names and prints them in order.
 *
 *     mpiexec -n 4 ./hello [NODES]
 *
 * With NODES, the program fails unless its ranks run on exactly that many different nodes.
 */

#include "example.h"
#include <string.h>

/* How many different names there are. A name counts when none of the names before it is the same. */
static int count_different(char (*names)[MPI_MAX_PROCESSOR_NAME], int count)
{
    int different = 0;
    for (int i = 0; i < count; i++) {
        int earlier = 0;
        while (strcmp(names[earlier], names[i]) != 0)
            earlier++;
        different += earlier == i;
    }
    return different;
}

int main(int argc, char **argv)
{
    struct argument expected = {"NODES", 0, 10000};
    char name[MPI_MAX_PROCESSOR_NAME] = "", (*names)[MPI_MAX_PROCESSOR_NAME] = NULL;
    int rank, ranks, length, exit_code = DONE;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);   /* which one am I? */
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);  /* how many are we? */
    read_arguments(argc, argv, 1, &expected);

    /* Every rank sends its name. Rank 0 receives all names, in the order of the ranks. */
    MPI_Get_processor_name(name, &length);
    if (rank == 0)
        names = malloc(ranks * sizeof *names);
    MPI_Gather(name, sizeof name, MPI_CHAR, names, sizeof name, MPI_CHAR, 0, MPI_COMM_WORLD);

    if (rank == 0) {
        int nodes = count_different(names, ranks);
        for (int i = 0; i < ranks; i++)
            printf("rank %d of %d runs on %s\n", i, ranks, names[i]);
        if (expected.value != 0 && nodes != expected.value) {
            printf("hello: FAILED: %d different nodes instead of %ld\n", nodes, expected.value);
            exit_code = CHECK_FAILED;
        } else {
            printf("hello: ranks=%d nodes=%d\n", ranks, nodes);
        }
        free(names);
    }
    MPI_Finalize();
    return exit_code;
}
