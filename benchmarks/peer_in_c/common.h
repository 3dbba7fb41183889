/* What the neutral servers and the load generator share: connections, plain and TLS. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
static SSL_CTX *context;
#else
typedef void SSL;
#endif

enum { BLOCK = 262144 };
enum { AGAIN = -1, FAILED = -2 };

struct conn {
    int fd, ready, greedy, waiting, closed;
    SSL *ssl;
    char *kept;               /* what could not be echoed yet */
    long kept_size, got, length;
    double sent;
};

static char block[BLOCK];
static int poller;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Reading and writing, plain and TLS: a count (0 is the end), AGAIN or FAILED. */

#ifdef TLS
static long told(struct conn *c, int result)
{
    int error = SSL_get_error(c->ssl, result);
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
        return AGAIN;
    ERR_clear_error();
    return error == SSL_ERROR_ZERO_RETURN ? 0 : FAILED;
}
#endif

static long take(struct conn *c, void *into, size_t size)
{
    long n;
#ifdef TLS
    if (c->ssl) {
        n = SSL_read(c->ssl, into, (int)size);
        return n > 0 ? n : told(c, (int)n);
    }
#endif
    n = recv(c->fd, into, size, 0);
    return n >= 0 ? n : errno == EAGAIN ? AGAIN : FAILED;
}

static long give(struct conn *c, const void *from, size_t size)
{
    long n;
#ifdef TLS
    if (c->ssl) {
        n = SSL_write(c->ssl, from, (int)size);
        return n > 0 ? n : told(c, (int)n);
    }
#endif
    n = send(c->fd, from, size, MSG_NOSIGNAL);
    return n >= 0 ? n : errno == EAGAIN ? AGAIN : FAILED;
}

static void watch(struct conn *c, unsigned events)
{
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static struct conn *wrap(int fd, int server, int tls)
{
    int on = 1;
    struct epoll_event e = {.events = EPOLLIN};
    struct conn *c = calloc(1, sizeof *c);
    if (!c)
        die("calloc");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->fd = fd;
    c->ready = !tls;
#ifdef TLS
    if (tls) {
        c->ssl = SSL_new(context);
        SSL_set_fd(c->ssl, fd);
        if (server)
            SSL_set_accept_state(c->ssl);
        else
            SSL_set_connect_state(c->ssl);
    }
#else
    (void)server;
#endif
    e.data.ptr = c;
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    return c;
}

/* A closed connection is freed only when no event of this turn can point to it. */
static void end(struct conn *c)
{
    if (c->closed)
        return;
    c->closed = 1;
#ifdef TLS
    if (c->ssl) {
        if (c->ready)
            SSL_shutdown(c->ssl);
        ERR_clear_error();
        SSL_free(c->ssl);
    }
#endif
    close(c->fd);
    free(c->kept);
    c->kept = NULL;
}

static int handshake(struct conn *c)
{
#ifdef TLS
    if (!c->ready) {
        int result = SSL_do_handshake(c->ssl);
        if (result == 1)
            c->ready = 1;
        else
            return told(c, result) == AGAIN ? AGAIN : FAILED;
    }
#endif
    return c->ready ? 0 : FAILED;
}

static void prepare_tls(int server, const char *certificate, int tickets)
{
#ifdef TLS
    context = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_RELEASE_BUFFERS |
                                  SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (server && (SSL_CTX_use_certificate_chain_file(context, certificate) != 1 ||
                   SSL_CTX_use_PrivateKey_file(context, certificate, SSL_FILETYPE_PEM) != 1)) {
        fprintf(stderr, "cannot use %s\n", certificate);
        exit(1);
    }
    SSL_CTX_set_num_tickets(context, (size_t)tickets);
    if (!tickets)
        SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
#else
    (void)server, (void)certificate, (void)tickets;
    fprintf(stderr, "compiled without TLS\n");
    exit(1);
#endif
}
