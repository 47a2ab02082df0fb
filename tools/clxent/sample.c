/* SPDX-License-Identifier: MIT
 *
 * sample.c - real input for anybody: a byte-level bigram model counted from a text, as the logits of that
 * text.
 *
 * count(a, b) is how often byte b follows byte a in the whole file, count(a) = sum_b count(a, b).
 * Position i of the text, i = sequence * S + t, gives the row log(count(a, .) / count(a)) with a =
 * text[i], -inf for what never followed a, and the target text[i + 1]. That pair was counted, so every
 * row has a finite logit at its target, and softmax of a row is the model itself: the mean loss is the
 * model's cross-entropy on the text, which is printed from the counts, in double.
 */
#define _XOPEN_SOURCE 700
#include "cli.h"
#include "npy.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BYTES = 256 };

typedef struct options {
    cli_common common;
    const char *text, *out;
    size_t batch, seq;
} options;

typedef struct text {
    const unsigned char *bytes;
    size_t size;
} text;

enum { KEY_TEXT = 1, KEY_BATCH, KEY_SEQ, KEY_OUT };

static const struct argp_option option_list[] = {
    { "text", KEY_TEXT, "FILE", 0, "The text, any bytes (required)", 0 },
    { "batch", KEY_BATCH, "B", 0, "Sequences (required)", 0 },
    { "seq", KEY_SEQ, "S", 0, "Timesteps of a sequence (required); the text needs B * S + 1 bytes", 0 },
    { "out", KEY_OUT, "DIR", 0,
      "Where logits.npy [B, S, 256] f4 and targets.npy [B, S] u1 go (required); made if missing", 0 },
    { 0 },
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    options *o = state->input;
    switch (key) {
    case ARGP_KEY_INIT: state->child_inputs[0] = &o->common; return 0;
    case KEY_TEXT: o->text = cli_path(state, "text", value); return 0;
    case KEY_OUT: o->out = cli_path(state, "out", value); return 0;
    case KEY_BATCH: o->batch = cli_size(state, "batch", value, 1); return 0;
    case KEY_SEQ: o->seq = cli_size(state, "seq", value, 1); return 0;
    case ARGP_KEY_END:
        if (o->text == NULL || o->out == NULL || o->batch == 0 || o->seq == 0)
            argp_error(state, "--text, --batch, --seq and --out are required");
        else if (o->seq > (SIZE_MAX / 4 / BYTES / sizeof(float)) / o->batch)
            argp_error(state, "--batch %zu times --seq %zu: too many rows", o->batch, o->seq);
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static bool map_text(text *t, const char *path)
{
    struct stat info;
    void *mapping;
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (descriptor < 0 || fstat(descriptor, &info) != 0) {
        cli_fail(path, "cannot be read: %s", strerror(errno));
        if (descriptor >= 0) close(descriptor);
        return false;
    }
    mapping = S_ISREG(info.st_mode) && info.st_size > 0
                  ? mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0)
                  : NULL;
    close(descriptor);
    if (mapping == MAP_FAILED || !S_ISREG(info.st_mode)) {
        cli_fail(path, S_ISREG(info.st_mode) ? "cannot be mapped" : "not a regular file");
        return false;
    }
    t->bytes = mapping;
    t->size = (size_t)info.st_size;
    return true;
}

/* mkdir -p */
static bool make_directory(const char *path)
{
    char *copy = strdup(path);
    struct stat info;
    bool good = copy != NULL;

    for (char *at = copy; good && *at != '\0';) {
        at += strspn(at, "/");
        at += strcspn(at, "/");
        const char next = *at;
        *at = '\0';
        good = mkdir(copy, 0777) == 0 || errno == EEXIST;
        *at = next;
    }
    free(copy);
    if (good && stat(path, &info) == 0 && !S_ISDIR(info.st_mode)) {
        errno = ENOTDIR;
        good = false;
    }
    if (!good) cli_fail(path, "cannot be made: %s", strerror(errno));
    return good;
}

/* Fills the rows and returns the mean loss as the counts have it. */
static double write_rows(const text *t, size_t rows, float *logits, unsigned char *targets)
{
    static double counts[BYTES][BYTES]; /* exact up to 2^53 */
    static float log_probability[BYTES][BYTES];
    double pairs[BYTES] = { 0 };
    double loss = 0;

    for (size_t i = 0; i + 1 < t->size; i++) counts[t->bytes[i]][t->bytes[i + 1]]++;
    for (size_t a = 0; a < BYTES; a++)
        for (size_t b = 0; b < BYTES; b++) pairs[a] += counts[a][b];
    /* log 0 is -inf, as wanted. Rows of bytes that nothing follows are 0 / 0 and belong to no position. */
    for (size_t a = 0; a < BYTES; a++)
        for (size_t b = 0; b < BYTES; b++) log_probability[a][b] = (float)log(counts[a][b] / pairs[a]);

    for (size_t i = 0; i < rows; i++) {
        const unsigned char a = t->bytes[i], b = t->bytes[i + 1];
        if (i % 65536 == 0) cli_progress_set((double)i / (double)rows);
        memcpy(logits + i * BYTES, log_probability[a], sizeof log_probability[a]);
        targets[i] = b;
        loss += log(pairs[a] / counts[a][b]);
    }
    return loss / (double)rows;
}

int command_sample(int argc, char **argv)
{
    static const char *const about =
        "Makes input for `clxent eval` from a text: logits.npy, the log-probabilities of a byte-level "
        "bigram model counted from all of FILE (-inf for pairs that do not occur), and targets.npy, the "
        "bytes that follow. Prints the model's mean cross-entropy on these rows, from the counts.";
    const struct argp argp = { option_list, parse, NULL, about, cli_common_options, NULL, NULL };
    options o = { 0 };
    text t = { NULL, 0 };
    npy_output outputs[2] = { { 0 } };
    char *paths[2] = { NULL, NULL };
    npy_fault fault;
    size_t failed = 0;
    int status = CLI_FAILED;

    cli_parse(&argp, argc, argv, &o);
    const size_t rows = o.batch * o.seq;
    const size_t logits_shape[] = { o.batch, o.seq, BYTES };

    if (!map_text(&t, o.text)) goto done;
    if (t.size < rows + 1) {
        cli_fail(o.text, "%zu bytes: --batch %zu and --seq %zu take at least %zu", t.size, o.batch, o.seq,
                 rows + 1);
        goto done;
    }
    if (!make_directory(o.out)) goto done;
    for (size_t i = 0; i < 2; i++) {
        static const char *const names[] = { "logits.npy", "targets.npy" };
        const size_t size = strlen(o.out) + 16;
        paths[i] = malloc(size);
        if (paths[i] == NULL) {
            cli_fail(NULL, "out of memory");
            goto done;
        }
        snprintf(paths[i], size, "%s/%s", o.out, names[i]);
        if (npy_one_file(paths[i], o.text)) {
            cli_fail(paths[i], "is the same file as --text %s: takes another --out", o.text);
            goto done;
        }
        if (!npy_create(&outputs[i], paths[i], i == 0 ? "f4" : "u1", logits_shape, 3 - i, &fault)) {
            cli_fail(paths[i], "%s", fault.text);
            goto done;
        }
    }
    if (npy_same_file(&outputs[0], &outputs[1])) {
        cli_fail(paths[1], "is the same file as %s", paths[0]);
        goto done;
    }

    cli_progress_start("writing rows");
    const double loss = write_rows(&t, rows, outputs[0].data, outputs[1].data);
    cli_progress_stop();
    if (!npy_commit(outputs, 2, &failed, &fault)) {
        cli_fail(paths[failed], "%s", fault.text);
        goto done;
    }

    if (o.common.json) {
        cli_json_print(json_pack("{s:o, s:o, s:I, s:i, s:o}", "logits", cli_json_text(paths[0]), "targets",
                                 cli_json_text(paths[1]), "rows", (json_int_t)rows, "classes", BYTES,
                                 "cross_entropy", cli_json_number(loss)));
    } else {
        printf("logits         %s  [%zu, %zu, %d] f4\n", paths[0], o.batch, o.seq, BYTES);
        printf("targets        %s  [%zu, %zu] u1\n", paths[1], o.batch, o.seq);
        printf("cross-entropy  %.9f  nats a byte, from the counts\n", loss);
    }
    status = CLI_DONE;

done:
    for (size_t i = 0; i < 2; i++) {
        npy_discard(&outputs[i]);
        free(paths[i]);
    }
    if (t.bytes != NULL) munmap((void *)t.bytes, t.size);
    return status;
}
