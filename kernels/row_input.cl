/* SPDX-License-Identifier: MIT
 *
 * row_input.cl - a row whose classes vectors lie along: what is known of it before it is read, and its a_j. Stands behind
 * epilogue.cl in front of a way to read it: row_scan.cl for one work-item, group_rows.cl for a group.
 */
#if !defined(ALONG)
#    define ALONG 0
#endif
#if ALONG
#    define BLOCK 64 /* a row is one block */
#endif
/* Set by the host with -D, beside those of constants.cl and common.cl:
 *   BLOCK  vectors that one work-item takes between two looks at the maximum. Part of what decides the bits */
#if !defined(BLOCK) || BLOCK < 1 || (BLOCK != 1 && BLOCK % 2 != 0) || (WG_SIZE == 1 && BLOCK % 4 != 0)
#    error "BLOCK: a multiple of 4, or in groups 1 or of 2"
#endif

#if WG_SIZE == 1
#    define ONE_BLOCK 0
#endif

/* Vectors [first, last) of a row. */
typedef struct {
    uint first, last;
} vector_range;

/* One row's inputs. Vector v < vectors is x[v * VEC ..]; vector `vectors` is the tail of classes % VEC. */
typedef struct {
    __global const storage *x;
    ulong row;
    uint n; /* rows, 1 */
    uint classes;
    uint vectors;
    uint tail;
    __global const void *q;              /* probabilities [classes] */
    __global const acc_t *class_weights; /* [classes] */
    bool best;                           /* the argmax is wanted */
    bool nan;                            /* so is which class is NaN */
    options o;
#if WG_SIZE > 1
    vec kept[BLOCK]; /* see ONE_BLOCK */
#else
    uint local_elements;
    bool fits;     /* the exponentials of a row fit into local_rows */
    bool keeps;    /* this run keeps them there */
    bool in_local; /* those of this row are there */
    acc_t kept_q;  /* at this scale, see block_scale_of(); NO_SCALE while all of them are 0 */
    uint ahead;    /* vectors from one that is computed with to the one that is prefetched meanwhile */
    uint slope_at; /* where local_rows has the slope of every class beside its exponential; 0: it has not */
#endif
} row_input;

static inline vec probability_vector(const row_input *in, const uint at)
{
    if (TARGETS == TARGET_PROBABILITIES_LOGITS) return load_vector((__global const storage *)in->q + at);
    return CONVERT_VEC(LOAD((__global const float *)in->q + at));
}

/* The part of a_j that every class has: of an index target the smoothing, of probabilities all. */
static inline acc_t dense_one(const row_input *in, const uint at)
{
    acc_t a = in->o.smoothing_per_class;
    if (HAS_PROBABILITIES) a = fma(in->o.one_minus_smoothing, load_probability(in->q, at), a);
    if (HAS_CLASS_WEIGHTS) a = a * in->class_weights[at];
    return a;
}

/* n < VEC: only the first n exist, the others give 0. */
static inline vec dense_vector(const row_input *in, const uint at, const uint n)
{
    if (n < VEC) {
        acc_t element[VEC];
        ROLLED
        for (uint i = 0; i < VEC; i++) element[i] = i < n ? dense_one(in, at + i) : 0;
        return LOAD(element);
    }
    vec a = (vec)(in->o.smoothing_per_class);
    if (HAS_PROBABILITIES) a = fma((vec)(in->o.one_minus_smoothing), probability_vector(in, at), a);
    if (HAS_CLASS_WEIGHTS) a = a * LOAD(in->class_weights + at);
    return a;
}
