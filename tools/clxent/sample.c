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
#define _GNU_SOURCE /* asprintf */
#include "cli.h"
#include "npy.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { BYTES = 256 };

typedef struct options {
    const char *text, *out;
    size_t batch, seq;
} options;

static const cli_flag flags[] = {
    { "text", "FILE", "The text, any bytes (required)", .kind = CLI_PATH, offsetof(options, text) },
    { "batch", "B", "Sequences (required)", CLI_SIZE, offsetof(options, batch), .least = 1 },
    { "seq", "S", "Timesteps of a sequence (required); the text needs B * S + 1 bytes", CLI_SIZE,
      offsetof(options, seq), .least = 1 },
    { "out", "DIR",
      "Where logits.npy [B, S, 256] f4 and targets.npy [B, S] u1 go (required); made if missing",
      .kind = CLI_PATH, offsetof(options, out) },
};

static void check_flags(void *data, struct argp_state *state)
{
    const options *o = data;
    const struct {
        const char *flag;
        bool given;
    } required[] = { { "--text", o->text != NULL },
                     { "--batch", o->batch != 0 },
                     { "--seq", o->seq != 0 },
                     { "--out", o->out != NULL } };
    const char *missing[4];
    char list[64] = "";
    size_t count = 0;

    for (size_t i = 0; i < sizeof required / sizeof *required; i++)
        if (!required[i].given) missing[count++] = required[i].flag;
    for (size_t i = 0; i < count; i++) {
        strcat(list, i == 0 ? "" : i + 1 < count ? ", " : " and ");
        strcat(list, missing[i]);
    }
    if (count > 0) argp_error(state, "%s %s required", list, count > 1 ? "are" : "is");
    if (o->seq > (SIZE_MAX / 4 / BYTES / sizeof(float)) / o->batch)
        argp_error(state, "--batch %zu times --seq %zu: too many rows", o->batch, o->seq);
}

/* Fills the rows and returns the mean loss as the counts have it. */
static double write_rows(const unsigned char *bytes, size_t size, size_t rows, float *logits,
                         unsigned char *targets)
{
    static double counts[BYTES][BYTES]; /* exact up to 2^53 */
    static float log_probability[BYTES][BYTES];
    double pairs[BYTES] = { 0 };
    double loss = 0;

    for (size_t i = 0; i + 1 < size; i++) counts[bytes[i]][bytes[i + 1]]++;
    for (size_t a = 0; a < BYTES; a++)
        for (size_t b = 0; b < BYTES; b++) pairs[a] += counts[a][b];
    /* log 0 is -inf, as wanted. Rows of bytes that nothing follows are 0 / 0 and belong to no position. */
    for (size_t a = 0; a < BYTES; a++)
        for (size_t b = 0; b < BYTES; b++) log_probability[a][b] = (float)log(counts[a][b] / pairs[a]);

    for (size_t i = 0; i < rows; i++) {
        const unsigned char a = bytes[i], b = bytes[i + 1];
        if (i % 65536 == 0) cli_progress_set((double)i / (double)rows);
        memcpy(logits + i * BYTES, log_probability[a], sizeof log_probability[a]);
        targets[i] = b;
        loss += log(pairs[a] / counts[a][b]);
    }
    return loss / (double)rows;
}

/* Makes the files, whose paths are in the folder of --out. */
static bool create(const options *o, size_t size, char *paths[2], npy_output outputs[2])
{
    static const char *const names[] = { "logits.npy", "targets.npy" };
    const size_t rows = o->batch * o->seq, shape[] = { o->batch, o->seq, BYTES };
    npy_fault fault;

    if (size < rows + 1)
        return cli_fail(o->text, "%zu bytes: --batch %zu and --seq %zu take at least %zu", size, o->batch,
                        o->seq, rows + 1);
    for (size_t i = 0; i < 2; i++) {
        /* "./": a file in the place of the folder is found out */
        if (asprintf(&paths[i], "%s/./%s", o->out, names[i]) < 0) return cli_fail(NULL, "out of memory");
        if (!cli_make_folders(paths[i], 0777)) return cli_fail(o->out, "cannot be made: %s", strerror(errno));
        sprintf(paths[i], "%s/%s", o->out, names[i]);
        if (npy_one_file(paths[i], o->text))
            return cli_fail(paths[i], "is the same file as --text %s: takes another --out", o->text);
        if (!npy_create(&outputs[i], paths[i], i == 0 ? "f4" : "u1", shape, 3 - i, &fault))
            return cli_fail(paths[i], "%s", fault.text);
    }
    return !npy_same_file(&outputs[0], &outputs[1]) || cli_fail(paths[1], "is the same file as %s", paths[0]);
}

static void print_result(const options *o, char *const paths[2], double loss)
{
    const size_t rows = o->batch * o->seq;

    if (cli_given.json) {
        cli_json_print(json_pack("{s:o, s:o, s:I, s:i, s:o}", "logits", cli_json_text(paths[0]), "targets",
                                 cli_json_text(paths[1]), "rows", (json_int_t)rows, "classes", BYTES,
                                 "cross_entropy", cli_json_number(loss)));
        return;
    }
    printf("logits         %s  [%zu, %zu, %d] f4\n", paths[0], o->batch, o->seq, BYTES);
    printf("targets        %s  [%zu, %zu] u1\n", paths[1], o->batch, o->seq);
    printf("cross-entropy  %.9f  nats a byte, from the counts\n", loss);
}

int command_sample(int argc, char **argv)
{
    static const cli_syntax syntax = {
        "Makes input for `clxent eval` from a text: logits.npy, the log-probabilities of a byte-level "
        "bigram model counted from all of FILE (-inf for pairs that do not occur), and targets.npy, the "
        "bytes that follow. Prints the model's mean cross-entropy on these rows, from the counts.",
        flags, sizeof flags / sizeof *flags, check_flags
    };
    options o = { 0 };
    void *text;
    size_t size;
    npy_output outputs[2] = { { 0 } };
    char *paths[2] = { NULL, NULL };
    npy_fault fault;
    size_t failed = 0;

    cli_parse(&syntax, argc, argv, &o);
    bool good = npy_map(o.text, &text, &size, &fault) || cli_fail(o.text, "%s", fault.text);
    good = good && create(&o, size, paths, outputs);
    if (good) {
        cli_progress_start("writing rows");
        const double loss = write_rows(text, size, o.batch * o.seq, outputs[0].data, outputs[1].data);
        cli_progress_stop();
        good = npy_commit(outputs, 2, &failed, &fault) || cli_fail(paths[failed], "%s", fault.text);
        if (good) print_result(&o, paths, loss);
    }
    for (size_t i = 0; i < 2; i++) {
        npy_discard(&outputs[i]);
        free(paths[i]);
    }
    if (text != NULL) munmap(text, size);
    return good ? CLI_DONE : CLI_FAILED;
}
