// Attention in blocks of keys with a running softmax (Dao et al. 2022; Milakov and Gimelshein 2018), so that the score
// matrix never exists, and a second branch of keys and values with a weight (Ye et al. 2023) in the same launch. What
// both ways of computing it share.

struct Counts { int n, m, m2, heads, d; };
struct Strides { int q, k, k2; };

#define ATTEND(T)                                                                                                      \
    (const T *q, const T *k, const T *v, const T *k2, const T *v2, T *out, Counts counts, Strides strides,             \
     float scale, int causal, float weight)
