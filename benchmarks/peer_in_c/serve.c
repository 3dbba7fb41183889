/*
 * The neutral servers of the benchmarks: one thread, epoll.
 *
 *   serve echo|sink|source [CERTIFICATE.pem [TICKETS]]
 *
 * Prints the port of 127.0.0.1 that it listens on, and serves until its input ends. With a
 * certificate it speaks TLS, if it was compiled with -DTLS.
 */
#include "common.h"

static int echo(struct conn *c)
{
    for (int turns = 0; turns < 8; turns++) {
        long n, done;
        if (c->kept_size) {
            done = give(c, c->kept, (size_t)c->kept_size);
            if (done == AGAIN) {
                watch(c, EPOLLOUT);
                return 0;
            }
            if (done < 0)
                return FAILED;
            c->kept_size -= done;
            memmove(c->kept, c->kept + done, (size_t)c->kept_size);
            if (!c->kept_size)
                watch(c, EPOLLIN);
            continue;
        }
        n = take(c, block, 65536);
        if (n == AGAIN)
            return 0;
        if (n <= 0)
            return FAILED;
        done = give(c, block, (size_t)n);
        if (done < 0 && done != AGAIN)
            return FAILED;
        if (done < n) {
            done = done < 0 ? 0 : done;
            if (!c->kept && !(c->kept = malloc(65536)))
                die("malloc");
            c->kept_size = n - done;
            memcpy(c->kept, block + done, (size_t)c->kept_size);
        } else if (!c->ssl && n < 65536)
            return 0;
    }
    return 0;
}

static int sink(struct conn *c)
{
    for (int turns = 0; turns < 8; turns++) {
        long n = take(c, block, BLOCK);
        if (n == AGAIN || n <= 0)
            return n == AGAIN ? 0 : FAILED;
    }
    return 0;
}

static int source(struct conn *c)
{
    watch(c, EPOLLOUT);
    for (int turns = 0; turns < 8; turns++) {
        long n = give(c, block, BLOCK);
        if (n < 0)
            return n == AGAIN ? 0 : FAILED;
    }
    return 0;
}

static int serve(const char *mode, int tls)
{
    int (*handle)(struct conn *) = *mode == 'e' ? echo : mode[1] == 'i' ? sink : source;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    struct epoll_event events[512], e = {.events = EPOLLIN, .data.ptr = NULL};
    static char input;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096))
        die("listen");
    getsockname(listener, (struct sockaddr *)&at, &size);
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    e.data.ptr = &input;
    epoll_ctl(poller, EPOLL_CTL_ADD, 0, &e);
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    for (;;) {
        static struct conn *ended[512];
        int count = epoll_wait(poller, events, 512, -1), left = 0;
        for (int i = 0; i < count; i++) {
            struct conn *c = events[i].data.ptr;
            int result;
            if (events[i].data.ptr == &input)
                return 0; /* nothing is ever said there: it has ended */
            if (!c) {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    c = wrap(fd, 1, tls);
                    if (handle == source && !tls)
                        watch(c, EPOLLOUT);
                }
                continue;
            }
            result = c->ready ? 0 : handshake(c);
            if (!result)
                result = handle(c);
            if (result == FAILED) {
                end(c);
                ended[left++] = c;
            }
        }
        while (left)
            free(ended[--left]);
    }
}

int main(int count, char **words)
{
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    if (count < 2) {
        fprintf(stderr, "usage: serve echo|sink|source [CERTIFICATE.pem [TICKETS]]\n");
        return 2;
    }
    if (count > 2)
        prepare_tls(1, words[2], count > 3 ? atoi(words[3]) : 0);
    return serve(words[1], count > 2);
}
