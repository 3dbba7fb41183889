/*
 * The load generator of the benchmarks: one thread, epoll.
 *
 *   load MODE PORT CONNECTIONS SIZE [tls]
 *
 * Connects, prints "ready", and for each line "SECONDS [GREEDY]" of its input puts the load on
 * the server for so long and prints a line of JSON. Ends with its input.
 *
 *   round-trips  SIZE bytes there and back on each connection; with GREEDY also as many more
 *                connections that send without a pause, which are not counted
 *   connects     connect, SIZE bytes there and back, close; CONNECTIONS at a time
 *   send         send without a pause
 *   receive      receive without a pause
 *   hold         connect, and do nothing
 *   web          GET /file of HTTP/1.1 on connections that are kept
 *
 * Over TLS nothing is verified: it is not the generator that is measured.
 */
#include "common.h"

enum { MOST = 16384, BUCKETS = 1 << 20, HEAD = 65536 };

static char page[HEAD];
static struct conn *conns[MOST];
static unsigned latencies[BUCKETS]; /* by microsecond */
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int target, secure;
static long message_size, operations, bytes;
static int idle; /* connections that wait for nothing */
static double deadline;
static char request[BLOCK];

static struct conn *dial(void)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((unsigned short)target),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    /* On loopback it is the kernel that accepts, and nothing is waited for. */
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
        die("connect");
    fcntl(fd, F_SETFL, O_NONBLOCK);
    struct conn *c = wrap(fd, 0, secure);
    if (secure)
        handshake(c);
    return c;
}

static void ask(struct conn *c)
{
    c->sent = now();
    c->got = 0;
    c->length = 0;
    c->waiting = 1;
    /* Small: a socket that waits for the answer to the last one has room for it. */
    if (give(c, request, (size_t)message_size) != message_size)
        die("a request did not fit");
}

/* Returns 1 once the whole answer is there. */
static int answered(struct conn *c, int web)
{
    for (;;) {
        long n = web && c->length == 0 ? take(c, page + c->got, (size_t)(HEAD - 1 - c->got))
                                       : take(c, block, BLOCK);
        char *body, *length;
        if (n == AGAIN)
            return 0;
        if (n <= 0) {
            fprintf(stderr, "a connection was lost\n");
            exit(1);
        }
        c->got += n;
        if (web && c->length == 0) {
            /* One page buffer for all: a head comes in one piece or the length is the last. */
            static long known;
            page[c->got] = 0;
            body = strstr(page, "\r\n\r\n");
            length = strcasestr(page, "content-length:");
            if (c->got == n && body && length)
                known = body + 4 - page + atol(length + 15);
            c->length = known;
        }
        if (c->got >= (web ? c->length : message_size) && (!web || c->length))
            return 1;
        if (!c->ssl)
            return 0;
    }
}

static void run(const char *mode, int connections, double seconds, int greedy)
{
    int web = *mode == 'w', connects = *mode == 'c', sends = *mode == 's', hold = *mode == 'h';
    int receives = !strcmp(mode, "receive"), opened = connections + greedy;
    double begin = now(), end_of_all;
    struct epoll_event events[512];
    operations = bytes = 0;
    memset(latencies, 0, sizeof latencies);
    deadline = begin + seconds;
    end_of_all = deadline + 20;
    idle = 0;
    for (int i = 0; i < opened; i++) {
        struct conn *c = conns[i];
        if (i >= connections) {
            c = conns[i] = dial();
            c->greedy = 1;
        } else if (connects)
            c = conns[i] = dial();
        c->waiting = 0;
        if (c->greedy)
            watch(c, EPOLLIN | EPOLLOUT);
        else if (sends)
            watch(c, EPOLLOUT);
        else if (receives)
            watch(c, EPOLLIN);
        else if (!connects && !hold)
            ask(c);
        else if (connects && c->ready)
            ask(c);
    }
    while (now() < (connects || sends || receives || hold ? deadline : end_of_all)) {
        struct conn *done[512];
        int left = 0, count;
        if (!connects && !sends && !receives && !hold && idle == connections)
            break;
        count = epoll_wait(poller, events, 512, 10);
        for (int i = 0; i < count; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c->ready) {
                int result = handshake(c);
                if (result == FAILED) {
                    fprintf(stderr, "a handshake failed\n");
                    exit(1);
                }
                if (result == 0 && !c->greedy)
                    ask(c);
                continue;
            }
            if (sends || c->greedy) {
                if (events[i].events & EPOLLOUT) {
                    long n = give(c, block, sends ? BLOCK : 65536);
                    if (n > 0 && sends)
                        bytes += n;
                }
                if (c->greedy && events[i].events & EPOLLIN)
                    take(c, block, 65536);
                continue;
            }
            if (receives) {
                long n;
                for (int turns = 0; turns < 8 && (n = take(c, block, BLOCK)) > 0; turns++)
                    bytes += n;
                continue;
            }
            if (hold)
                continue;
            if (!c->waiting) {
                /* Tickets, or an end. */
                if (take(c, block, BLOCK) == AGAIN)
                    continue;
                fprintf(stderr, "a connection was lost\n");
                exit(1);
            }
            if (!answered(c, web))
                continue;
            double at = now();
            unsigned long latency = (unsigned long)((at - c->sent) * 1e6);
            latencies[latency < BUCKETS ? latency : BUCKETS - 1]++;
            operations++;
            bytes += c->got;
            c->waiting = 0;
            if (connects) {
                for (int k = 0; k < opened; k++)
                    if (conns[k] == c)
                        conns[k] = dial();
                end(c);
                done[left++] = c;
                continue;
            }
            if (at < deadline)
                ask(c);
            else
                idle++;
        }
        while (left)
            free(done[--left]);
        if (connects)
            for (int i = 0; i < opened; i++)
                if (conns[i]->ready && !conns[i]->waiting)
                    ask(conns[i]);
    }
    seconds = now() - begin;
    for (int i = 0; i < opened; i++) {
        if (i >= connections || connects) {
            end(conns[i]);
            free(conns[i]);
        } else if (sends || receives)
            watch(conns[i], 0);
    }
    long total = 0, half = -1, last = -1;
    for (long i = 0; i < BUCKETS; i++) {
        total += latencies[i];
        if (half < 0 && total * 2 >= operations)
            half = i;
        if (last < 0 && total * 100 >= operations * 99)
            last = i;
    }
    printf("{\"operations\": %ld, \"bytes\": %ld, \"seconds\": %.6f, \"p50\": %ld, \"p99\": %ld}\n",
           operations, bytes, seconds, half, last);
    fflush(stdout);
}

static int load(const char *mode, int connections)
{
    char line[64];
    if (*mode == 'w')
        message_size = sprintf(request, "GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n");
    if (*mode != 'c') {
        for (int i = 0; i < connections; i++) {
            struct conn *c = conns[i] = dial();
            double limit = now() + 20;
            /* One after another: a server is not to be measured by how it queues these. */
            while (!c->ready && now() < limit) {
                struct epoll_event e;
                if (handshake(c) == FAILED)
                    break;
                if (!c->ready)
                    epoll_wait(poller, &e, 1, 10);
            }
            if (!c->ready) {
                fprintf(stderr, "a handshake failed\n");
                return 1;
            }
            if (*mode == 's' || !strcmp(mode, "receive"))
                watch(c, 0);
            else {
                /* It is accepted, and has had its first turn, before anything is measured. */
                ask(c);
                while (!answered(c, *mode == 'w') && now() < limit)
                    epoll_wait(poller, &(struct epoll_event){0}, 1, 10);
                c->waiting = 0;
            }
        }
    }
    printf("ready\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        double seconds = 0;
        int greedy = 0;
        sscanf(line, "%lf %d", &seconds, &greedy);
        run(mode, connections, seconds, greedy);
    }
    return 0;
}

int main(int count, char **words)
{
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    memset(request, 'x', sizeof request);
    if (count < 5 || atoi(words[3]) > MOST - 64) {
        fprintf(stderr, "usage: load MODE PORT CONNECTIONS SIZE [tls]\n");
        return 2;
    }
    target = atoi(words[2]);
    message_size = atol(words[4]);
    secure = count > 5;
    if (secure)
        prepare_tls(0, NULL, 0);
    return load(words[1], atoi(words[3]));
}
