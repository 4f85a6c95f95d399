//! What a rehearsal counts is what a run allocates. One test: what is allocated is common to all
//! threads.

use std::sync::Arc;

use peak_alloc::PeakAlloc;
use sdxl::memory::rehearsal;
use sdxl::model::unet::UNet;
use sdxl::model::vae::Vae;
use sdxl::tensor::{Tensor, release_buffers};
use sdxl::text::clip::ClipTextModel;
use sdxl::weights::Loader;
use sdxl::{Checkpoint, Part, Precision};
use sdxl_testing::golden;

/// Packed weights are mapped and not allocated, so what it sees is all the rest.
#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

fn allocated<R>(run: impl FnOnce() -> R) -> u64 {
    release_buffers();
    ALLOCATED.reset_peak_usage();
    let before = ALLOCATED.current_usage();
    let result = run();
    let peak = ALLOCATED.peak_usage() - before;
    drop(result);
    peak as u64
}

/// Within a tenth: not counted are numbers on their way into a network, and what each thread has
/// for itself.
fn assert_near(counted: u64, allocated: u64, what: &str) {
    let said = format!("{what}: counted {counted}, allocated {allocated}");
    println!("{said}");
    assert!(allocated > 3 << 20, "{said}: too little to tell");
    assert!(counted.abs_diff(allocated) <= allocated / 10, "{said}");
}

#[test]
fn networks_allocate_what_their_rehearsals_count() {
    let checkpoint = Checkpoint::open(&golden("base"), None).unwrap();
    let zeros = |shape: &[usize]| Tensor::from_f32(shape, vec![0.1; shape.iter().product()]);
    for precision in [
        Precision::F32,
        Precision::Bf16,
        Precision::Int8,
        Precision::F16,
    ] {
        let config = &checkpoint.unet;
        let tensors = checkpoint.tensors(Part::UNet).unwrap();
        let path = checkpoint.config_path(Part::UNet);
        let loader = Loader::new(&tensors, precision);
        let unet = UNet::load(config, &path, &loader).unwrap();
        let counts = rehearsal::unet(&checkpoint, precision, false).unwrap();
        // An odd side too: where enlarging is an operator of its own.
        for (rows, height, width) in [(6, 64, 64), (9, 51, 47)] {
            let evaluate = || {
                let keys = |_| {
                    Arc::new(
                        unet.text_keys(&zeros(&[77, config.cross_attention_dim]))
                            .unwrap(),
                    )
                };
                let keys: Vec<_> = (0..rows).map(keys).collect();
                let added = zeros(&[rows, config.projection_class_embeddings_input_dim]);
                let x = zeros(&[rows, height, width, config.in_channels]);
                unet.forward_with(&x, &vec![500.0; rows], &keys, &added, &zeros(&[rows, 0]))
                    .unwrap()
            };
            // Every thread that works at once has buffers of its own; on a busy machine fewer do.
            let took = (0..5).map(|_| allocated(evaluate)).max().unwrap();
            let counted = counts.evaluation(rows, (rows, 77), [height, width]).peak;
            let what = format!("UNet, {precision}, {rows} x {height} x {width}");
            assert_near(counted - counts.weights(), took, &what);
        }
        let keys = unet
            .text_keys(&zeros(&[154, config.cross_attention_dim]))
            .unwrap();
        assert_eq!(counts.text_keys(154), keys.bytes());

        let tensors = checkpoint.tensors(Part::Vae).unwrap();
        let mut checkpoint = checkpoint.clone();
        checkpoint.vae.force_upcast = false;
        let loader = Loader::new(&tensors, precision.of_part(Part::Vae, false));
        let vae = Vae::load(&checkpoint.vae, &loader).unwrap();
        let counts = rehearsal::vae(&checkpoint, precision, false).unwrap();
        let took = allocated(|| {
            vae.decode(&zeros(&[2, 24, 40, checkpoint.vae.latent_channels]))
                .unwrap()
        });
        let counted = counts.decode(2, [24, 40]).peak - counts.weights();
        assert_near(counted, took, &format!("decoding, {precision}"));
        let took = allocated(|| vae.encode(&zeros(&[1, 8 * 40, 8 * 48, 3])).unwrap());
        let counted = counts.encode([40, 48]).peak - counts.weights();
        assert_near(counted, took, &format!("encoding, {precision}"));

        let part = Part::TextEncoder2;
        let tensors = checkpoint.tensors(part).unwrap();
        let loader = Loader::new(&tensors, precision.of_part(part, false));
        let model = ClipTextModel::load(&checkpoint.text_encoder_2, &loader, true).unwrap();
        let ids = vec![vec![0; checkpoint.text_encoder_2.max_position_embeddings]; 70];
        let took = allocated(|| model.forward(&ids, 1).unwrap());
        let counts = rehearsal::text_encoder(&checkpoint, part, precision, false).unwrap();
        let counted = counts.encode(70).peak - counts.weights();
        assert_near(counted, took, &format!("text, {precision}"));
    }
}
