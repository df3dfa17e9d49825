/* All examples share this file: their exit codes, and the code that reads their command lines. */

#include <errno.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { DONE = 0, CHECK_FAILED = 1, BAD_REQUEST = 2 }; /* exit codes */

/* A number on the command line. `value` is its default, until read_arguments() replaces it. */
struct argument {
    const char *name;
    long value, largest;
};

/* Ends the program on every rank. All ranks must call it, with the same text; only rank 0 prints it. */
static inline void refuse(const char *program, const char *reason)
{
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (rank == 0)
        fprintf(stderr, "%s: %s\n", program, reason);
    MPI_Finalize();
    exit(BAD_REQUEST);
}

/* Reads `count` whole numbers from the command line. Each may be left out, the last ones first. */
static inline void read_arguments(int argc, char **argv, int count, struct argument *arguments)
{
    char reason[200], *end;

    if (argc - 1 > count)
        refuse(argv[0], "too many arguments");
    for (int i = 0; i < argc - 1; i++) {
        errno = 0;
        long value = strtol(argv[i + 1], &end, 10);
        if (errno != 0 || end == argv[i + 1] || *end != '\0' || value < 1 || value > arguments[i].largest) {
            snprintf(reason, sizeof reason, "%s must be a whole number from 1 to %ld, not '%.50s'",
                     arguments[i].name, arguments[i].largest, argv[i + 1]);
            refuse(argv[0], reason);
        }
        arguments[i].value = value;
    }
}
