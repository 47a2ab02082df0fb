/* SPDX-License-Identifier: MIT
 *
 * sha256.c - SHA-256 of FIPS 180-4. It names compiled programs and tells whether stored bytes are those that were saved.
 */
#include "internal.h"

#include <string.h>

static const uint32_t round_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, unsigned by) { return x >> by | x << (32 - by); }

static void add_block(clxent_sha256 *hash)
{
    uint32_t words[64], s[8];

    for (size_t i = 0; i < 16; i++) {
        const unsigned char *at = hash->block + 4 * i;
        words[i] = (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
    }
    for (size_t i = 16; i < 64; i++) {
        const uint32_t a = words[i - 15], b = words[i - 2];
        words[i] = words[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + words[i - 7] +
                   (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    memcpy(s, hash->state, sizeof s);
    for (size_t i = 0; i < 64; i++) {
        const uint32_t a = s[0], e = s[4];
        const uint32_t first = s[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
                               ((e & s[5]) ^ (~e & s[6])) + round_constants[i] + words[i];
        const uint32_t second =
            (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += first;
        s[0] = first + second;
    }
    for (size_t i = 0; i < 8; i++) hash->state[i] += s[i];
}

void clxent_sha256_begin(clxent_sha256 *hash)
{
    static const uint32_t initial[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
    memcpy(hash->state, initial, sizeof initial);
    hash->bytes = 0;
}

void clxent_sha256_add(clxent_sha256 *hash, const void *data, size_t size)
{
    const unsigned char *from = data;

    while (size > 0) {
        const size_t used = (size_t)(hash->bytes % sizeof hash->block);
        const size_t room = sizeof hash->block - used, taken = size < room ? size : room;
        memcpy(hash->block + used, from, taken);
        hash->bytes += taken;
        from += taken;
        size -= taken;
        if (taken == room) add_block(hash);
    }
}

void clxent_sha256_end(clxent_sha256 *hash, unsigned char digest[CLXENT_SHA256_BYTES])
{
    static const unsigned char padding[sizeof hash->block] = { 0x80 };
    const uint64_t bits = 8 * hash->bytes;
    const size_t used = (size_t)(hash->bytes % sizeof hash->block);
    unsigned char length[8];

    for (size_t i = 0; i < sizeof length; i++) length[i] = (unsigned char)(bits >> (56 - 8 * i) & 0xff);
    clxent_sha256_add(hash, padding, (used < 56 ? 56 : 120) - used);
    clxent_sha256_add(hash, length, sizeof length);
    for (size_t i = 0; i < CLXENT_SHA256_BYTES; i++)
        digest[i] = (unsigned char)(hash->state[i / 4] >> (24 - 8 * (i % 4)) & 0xff);
}
