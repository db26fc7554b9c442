/*
 * The program of the tests' pause images, of the kind and size of Kubernetes' own (build/pause/linux/pause.c there): it waits to be
 * told to end, and takes the exits of whoever is left to the first process of a pod.
 */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal) {
    (void)signal;
    _exit(0);
}

static void reap(int signal) {
    (void)signal;
    while (waitpid(-1, NULL, WNOHANG) > 0) {
    }
}

int main(void) {
    const struct sigaction ends = {.sa_handler = end};
    const struct sigaction reaps = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
    if (sigaction(SIGINT, &ends, NULL) < 0 || sigaction(SIGTERM, &ends, NULL) < 0 || sigaction(SIGCHLD, &reaps, NULL) < 0)
        return 1;
    for (;;)
        pause();
}
