//! Guidance: the combination of the predictions with and without the prompt, and its strength at
//! each step.

use crate::request::Request;

/// The guidance scale at `step`, from 0, of `steps`; `None` where the prompt alone is seen:
/// outside the request's interval, and where the scale is 1 or less.
pub(super) fn scale_at(request: &Request, step: usize, steps: usize) -> Option<f32> {
    let fraction = step as f64 / steps as f64;
    if let Some([from, to]) = request.guidance_interval
        && !(from..to).contains(&fraction)
    {
        return None;
    }
    let scale = match request.guidance_schedule.as_slice() {
        [] => request.guidance_scale,
        [one] => *one,
        scales => {
            let last = scales.len() - 1;
            let at = (step * last) as f64 / (steps - 1).max(1) as f64;
            let place = (at as usize).min(last - 1);
            let share = (at - place as f64) as f32;
            scales[place] + share * (scales[place + 1] - scales[place])
        }
    };
    (scale > 1.0).then_some(scale)
}

/// Classifier-free guidance (Ho & Salimans 2022), in place on the unguided prediction of
/// one image: `uncond + scale · (cond - uncond)`; with `rescale` > 0, pulled back
/// to the spread of `cond` by that share (Lin et al. 2023, section 3.4), which keeps
/// strong guidance from over-exposing.
pub(super) fn guide(uncond: &mut [f32], cond: &[f32], scale: f32, rescale: f32) {
    for (u, c) in uncond.iter_mut().zip(cond) {
        *u += scale * (c - *u);
    }
    if rescale > 0.0 {
        let factor = deviation(cond) / deviation(uncond);
        let mixed = f64::from(rescale) * factor + (1.0 - f64::from(rescale));
        for u in uncond.iter_mut() {
            *u = (f64::from(*u) * mixed) as f32;
        }
    }
}

/// The prediction of a prompt of several parts, `cond` holding theirs one after the other
/// (composable diffusion, Liu et al. 2022): `uncond + Σ w · (cond - uncond)`. One part of
/// weight 1 is returned as it is.
pub(super) fn compose(
    uncond: &[f32],
    mut cond: Vec<f32>,
    weights: impl Iterator<Item = f32>,
) -> Vec<f32> {
    let weights: Vec<f32> = weights.collect();
    if weights == [1.0] {
        return cond;
    }
    let others = cond.split_off(uncond.len());
    for (c, u) in cond.iter_mut().zip(uncond) {
        *c = u + weights[0] * (*c - u);
    }
    for (part, weight) in others.chunks_exact(uncond.len()).zip(&weights[1..]) {
        for ((c, part), u) in cond.iter_mut().zip(part).zip(uncond) {
            *c += weight * (part - u);
        }
    }
    cond
}

/// The sample standard deviation (divided by n - 1, as torch's is).
fn deviation(values: &[f32]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum();
    (squares / (n - 1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guidance_moves_past_the_conditional_prediction() {
        let mut uncond = [1.0, -1.0, 0.5];
        guide(&mut uncond, &[2.0, -1.0, 0.0], 5.0, 0.0);
        assert_eq!(uncond, [6.0, -1.0, -2.0]);
    }

    #[test]
    fn schedules_and_intervals() {
        let scales = |request: &Request, steps: usize| -> Vec<f32> {
            (0..steps)
                .map(|step| scale_at(request, step, steps).unwrap_or(0.0))
                .collect()
        };
        let mut request = Request::default();
        assert_eq!(scales(&request, 3), [5.0; 3]);
        request.guidance_interval = Some([0.2, 0.8]);
        assert_eq!(scales(&request, 5), [0.0, 5.0, 5.0, 5.0, 0.0]);
        request.guidance_interval = Some([0.0, 1.0]);
        request.guidance_schedule = vec![9.0, 3.0];
        assert_eq!(scales(&request, 4), [9.0, 7.0, 5.0, 3.0]);
        assert_eq!(scales(&request, 1), [9.0]);
        // As many as steps: each its own. A scale of 1 is no guidance.
        request.guidance_schedule = vec![2.0, 1.0, 4.0, 8.0];
        assert_eq!(scales(&request, 4), [2.0, 0.0, 4.0, 8.0]);
    }

    #[test]
    fn parts_add_up_by_weight() {
        let uncond = [1.0, -1.0];
        let one = compose(&uncond, vec![3.0, 0.0], [1.0].into_iter());
        assert_eq!(one, [3.0, 0.0]);
        let half = compose(&uncond, vec![3.0, 0.0], [0.5].into_iter());
        assert_eq!(half, [2.0, -0.5]);
        let two = compose(&uncond, vec![3.0, 0.0, 0.0, 1.0], [1.0, -0.5].into_iter());
        assert_eq!(two, [3.5, -1.0]);
    }

    #[test]
    fn full_rescale_restores_the_spread() {
        let cond = [0.3, -0.4, 1.1, 0.2];
        let mut out = [0.1, 0.2, 0.4, -0.9];
        guide(&mut out, &cond, 7.0, 1.0);
        assert!((deviation(&out) - deviation(&cond)).abs() < 1e-6);
    }
}
