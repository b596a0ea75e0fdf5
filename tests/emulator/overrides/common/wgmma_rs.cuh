// In place of the kernels' own: products whose A comes from registers.
#pragma once
#include "common/wgmma.cuh"

template <u32 kN>
struct WgmmaE4m3Rs {
    template <bool kAdd>
    static void run(float (&d)[kN / 2], const u32 (&a)[4], u64 desc_b) {
        // Of the thread's two rows, all 32 of K: from the four lanes that have them.
        std::array<std::array<u8, 32>, 2> rows;
        for (u32 part = 0; part < 4; ++part) {
            emu::exchange(a[part], [&](auto of) {
                for (u32 t = 0; t < 4; ++t) {
                    const u32 four = of(emu::lane() / 4 * 4 + t);
                    std::memcpy(&rows[part % 2][part / 2 * 16 + 4 * t], &four, 4);
                }
                return 0;
            });
        }
        const u32 first = emu::self().index % 128 / 32 * 16 + emu::lane() / 4;
        emu::self().products.push_back([to = &d[0], rows, first, b = WgmmaOperand(desc_b)] {
            add_product<kN, 32>(
                to, kAdd, [&](u32 row, u32 k) { return kE4m3[rows[row != first][k]]; },
                [&](u32 column, u32 k) { return kE4m3[*b.at(column, k)]; });
        });
    }
};
