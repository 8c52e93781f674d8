//! Exponentials and logarithms of as many f32 at once as a register holds: of one with [`pulp::Scalar`]. By arithmetic
//! alone, so that loops over one vectorise.

use pulp::Simd;

/// `e^x` for `x ≤ 0`.
///
/// The relative error is below 3e-7 down to x = −87; from there to −∞ the result stays at e^−87 ≈ 1.6e-38.
///
/// # Source
///
/// `x = n·ln 2 + r`, |r| ≤ ½ ln 2 (Cody and Waite); the polynomial in r is our own minimax fit (relative
/// error 7.5e-8).
#[inline(always)]
pub fn exp_nonpositive<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // adding it rounds to an integer, which is then in the lowest bits
    const ROUND: f32 = 12_582_912.0; // 1.5·2²³
    // ln 2 as a part with few bits, so that n times it is exact, and the rest
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const EXP: [f32; 6] = [1.000_000_1, 0.999_999_7, 0.499_988_9, 0.166_675_8, 0.041_915_875, 0.008_297_571];
    let splat = |value| simd.splat_f32s(value);
    let x = simd.max_f32s(x, splat(-87.0));
    let rounded = simd.mul_add_e_f32s(x, splat(std::f32::consts::LOG2_E), splat(ROUND));
    let n = simd.sub_f32s(rounded, splat(ROUND));
    let r = simd.mul_add_e_f32s(n, splat(-LN_2_HIGH), x);
    let r = simd.mul_add_e_f32s(n, splat(-LN_2_LOW), r);
    // times 2^n: n is added to the exponent of a number near 1, which stays above the smallest for n ≥ −126
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    let near_one = simd.transmute_u32s_f32s(horner(simd, r, EXP));
    simd.transmute_f32s_u32s(simd.add_u32s(near_one, exponent))
}

/// `ln(1 + z)` for `0 ≤ z ≤ 1`, with a relative error below 3e-7.
///
/// # Source
///
/// `z·P(z)`, P our own minimax fit (relative error 3e-8).
#[inline(always)]
pub fn ln_1p<S: Simd>(simd: S, z: S::f32s) -> S::f32s {
    const LN_1P_OVER_Z: [f32; 9] = [
        0.999_999_94,
        -0.499_994_93,
        0.333_190_95,
        -0.248_429_64,
        0.191_059_35,
        -0.136_630_95,
        0.078_224_175,
        -0.029_504_146,
        0.005_232_421_7,
    ];
    simd.mul_f32s(z, horner(simd, z, LN_1P_OVER_Z))
}

/// `ln(1 + e^l) = max(l, 0) + ln(1 + e^−|l|)`.
///
/// The relative error is below 1e-6 for every logit above −87, where the loss is 1.6e-38; below, the loss
/// stays there.
#[inline(always)]
pub fn softplus<S: Simd>(simd: S, logit: S::f32s) -> S::f32s {
    let minus_abs = simd.min_f32s(logit, simd.neg_f32s(logit));
    let rest = ln_1p(simd, exp_nonpositive(simd, minus_abs));
    simd.add_f32s(simd.max_f32s(logit, simd.splat_f32s(0.0)), rest)
}

/// `coefficients[0] + coefficients[1]·x + …`
#[inline(always)]
fn horner<S: Simd, const N: usize>(simd: S, x: S::f32s, coefficients: [f32; N]) -> S::f32s {
    let mut sum = simd.splat_f32s(coefficients[N - 1]);
    for coefficient in coefficients[..N - 1].iter().rev() {
        sum = simd.mul_add_e_f32s(sum, x, simd.splat_f32s(*coefficient));
    }
    sum
}

/// Every set of instructions that this processor has and the kernels know.
#[cfg(test)]
pub(crate) fn every_arch() -> Vec<pulp::Arch> {
    use pulp::Arch;
    #[cfg(target_arch = "x86_64")]
    let more = [pulp::x86::V3::try_new().map(Arch::V3), pulp::x86::V4::try_new().map(Arch::V4)];
    #[cfg(not(target_arch = "x86_64"))]
    let more = [Some(Arch::new())];
    [Some(Arch::Scalar)].into_iter().chain(more).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::WithSimd;

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Ln1p,
        Softplus,
    }

    struct Apply<'a> {
        function: Function,
        values: &'a mut [f32],
    }

    impl WithSimd for Apply<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (vectors, rest) = S::as_mut_simd_f32s(self.values);
            assert!(rest.is_empty());
            for vector in vectors {
                *vector = match self.function {
                    Function::Exp => exp_nonpositive(simd, *vector),
                    Function::Ln1p => ln_1p(simd, *vector),
                    Function::Softplus => softplus(simd, *vector),
                };
            }
        }
    }

    /// The function of these on each set of instructions that this processor has.
    #[track_caller]
    fn check(function: Function, mut values: Vec<f32>, exact: impl Fn(f64) -> f64, bound: f64) {
        values.truncate(values.len() / 64 * 64);
        for arch in every_arch() {
            let mut found = values.clone();
            arch.dispatch(Apply { function, values: &mut found });
            for (found, value) in found.iter().zip(&values) {
                let error = f64::from(*found) / exact(f64::from(*value)) - 1.0;
                assert!(error.abs() < bound, "relative error {error:e} at {value} with {arch:?}");
            }
        }
    }

    fn softplus_f64(l: f64) -> f64 {
        l.max(0.0) + (-l.abs()).exp().ln_1p()
    }

    #[test]
    fn functions_have_their_stated_errors() {
        let grid = |from: i32, to: i32, step: f32| (from..=to).map(|at| at as f32 * step).collect();
        check(Function::Exp, grid(-870_000, 0, 1e-4), f64::exp, 3e-7);
        check(Function::Ln1p, grid(1, 1_000_000, 1e-6), f64::ln_1p, 3e-7);
        check(Function::Softplus, grid(-870_000, 1_200_000, 1e-4), softplus_f64, 1e-6);
    }

    #[test]
    fn far_out_nothing_breaks() {
        for arch in every_arch() {
            let of = |function, value| {
                let mut values = vec![value; 64];
                arch.dispatch(Apply { function, values: &mut values });
                values[0]
            };
            for logit in [-1e6, f32::MIN, f32::NEG_INFINITY] {
                assert!(of(Function::Exp, logit) > 0.0 && of(Function::Exp, logit) < 2e-38);
                assert!(of(Function::Softplus, logit) > 0.0 && of(Function::Softplus, logit) < 2e-38);
            }
            assert_eq!(of(Function::Exp, 0.0), of(Function::Exp, -0.0));
            assert_eq!(of(Function::Softplus, 1e6), 1e6);
        }
    }
}
