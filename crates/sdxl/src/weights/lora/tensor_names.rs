//! The names of tensors in LoRAs: which module each belongs to, and which role it has in the module's
//! change.
//!
//! Read are the names of kohya's trainer, of LyCORIS, of diffusers and of PEFT, with what
//! `torch.compile` (`_orig_mod`) and PEFT (`base_layer`, adapters' names) leave in them.

use super::update::TensorRole;

/// A tensor's name, taken apart.
pub(super) struct TensorName<'a> {
    /// The module that is changed, in the words of the file.
    pub module: &'a str,
    /// The tensor's role in the change.
    pub role: TensorRole,
    /// The name of PEFT's adapter, where the file has it.
    pub adapter: Option<&'a str>,
}

/// The endings of names, each with the role that it marks.
const ENDINGS: [(&str, TensorRole); 37] = [
    (".lora_down.weight", TensorRole::Down),
    (".lora_up.weight", TensorRole::Up),
    (".lora_mid.weight", TensorRole::Mid),
    (".lora.down.weight", TensorRole::Down),
    (".lora.up.weight", TensorRole::Up),
    ("_lora.down.weight", TensorRole::Down),
    ("_lora.up.weight", TensorRole::Up),
    (".lora_linear_layer.down.weight", TensorRole::Down),
    (".lora_linear_layer.up.weight", TensorRole::Up),
    (".alpha", TensorRole::Alpha),
    (".dora_scale", TensorRole::DoraScale),
    (".lora_magnitude_vector", TensorRole::Magnitude),
    (".hada_w1_a", TensorRole::Hada1A),
    (".hada_w1_b", TensorRole::Hada1B),
    (".hada_w2_a", TensorRole::Hada2A),
    (".hada_w2_b", TensorRole::Hada2B),
    (".hada_t1", TensorRole::HadaT1),
    (".hada_t2", TensorRole::HadaT2),
    (".lokr_w1", TensorRole::Kron1),
    (".lokr_w1_a", TensorRole::Kron1A),
    (".lokr_w1_b", TensorRole::Kron1B),
    (".lokr_w2", TensorRole::Kron2),
    (".lokr_w2_a", TensorRole::Kron2A),
    (".lokr_w2_b", TensorRole::Kron2B),
    (".lokr_t2", TensorRole::KronT2),
    (".a1.weight", TensorRole::Glora1A),
    (".a2.weight", TensorRole::Glora2A),
    (".b1.weight", TensorRole::Glora1B),
    (".b2.weight", TensorRole::Glora2B),
    (".bm.weight", TensorRole::GloraMid),
    (".on_input", TensorRole::OnInput),
    (".diff", TensorRole::Diff),
    (".w_norm", TensorRole::Diff),
    (".diff_b", TensorRole::DiffBias),
    (".b_norm", TensorRole::DiffBias),
    (".lora_up.bias", TensorRole::DiffBias),
    (".lora.up.bias", TensorRole::DiffBias),
];

/// PEFT's marks, which an adapter's name may follow, with the roles of `.weight` and `.bias` behind
/// them.
const PEFT: [(&str, TensorRole, Option<TensorRole>); 3] = [
    (".lora_A.", TensorRole::Down, None),
    (".lora_B.", TensorRole::Up, Some(TensorRole::DiffBias)),
    (".lora_magnitude_vector.", TensorRole::Magnitude, None),
];

impl<'a> TensorName<'a> {
    /// Takes a name apart; `None` for one that no LoRA has. `is_ia3` says whether a module has the
    /// mark of (IA)3, whose factors are named as any weight is.
    pub(super) fn parse(name: &'a str, is_ia3: impl Fn(&str) -> bool) -> Option<TensorName<'a>> {
        for (mark, weight, bias) in PEFT {
            let Some((module, rest)) = name.rsplit_once(mark) else {
                continue;
            };
            let (adapter, role) = match (rest.strip_suffix("weight"), rest.strip_suffix("bias")) {
                (Some(adapter), _) => (adapter, weight),
                (_, Some(adapter)) => (adapter, bias?),
                // A vector of PEFT's is a parameter and no layer.
                _ if weight == TensorRole::Magnitude => (rest, weight),
                _ => return None,
            };
            let adapter = Some(adapter.trim_end_matches('.')).filter(|name| !name.is_empty());
            return Some(TensorName {
                module,
                role,
                adapter,
            });
        }
        let found = (ENDINGS.iter())
            .find_map(|(ending, role)| Some((name.strip_suffix(ending)?, *role)))
            .or_else(|| {
                let module = name
                    .strip_suffix(".weight")
                    .filter(|module| is_ia3(module))?;
                Some((module, TensorRole::Ia3))
            });
        found.map(|(module, role)| TensorName {
            module,
            role,
            adapter: None,
        })
    }
}

/// The name of a module without what programs leave in names.
pub(super) fn without_leftovers(module: &str) -> String {
    let mut name = format!("{module}.");
    for leftover in ["_orig_mod.", "_orig_mod_", "base_layer."] {
        name = name.replace(leftover, "");
    }
    name.trim_end_matches('.').to_string()
}

/// Names of tensors that change nothing: lists of numbers from 0, and the weights of the model itself,
/// which PEFT saves along on request.
pub(super) fn changes_nothing(name: &str) -> bool {
    name.ends_with(".position_ids")
        || name.ends_with(".base_layer.weight")
        || name.ends_with(".base_layer.bias")
}

/// The kind of a file that changes weights in a way that is not read here.
pub(super) fn foreign_kind<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    let kinds = [
        (".oft_blocks", "OFT (orthogonal finetuning)"),
        (".oft_diag", "OFT (orthogonal finetuning)"),
        (".oft_R.", "OFT (orthogonal finetuning)"),
        (".oft_r.", "OFT (orthogonal finetuning)"),
        (".boft_R.", "BOFT (orthogonal finetuning with butterflies)"),
        (".boft_s.", "BOFT (orthogonal finetuning with butterflies)"),
        (".vera_lambda_", "VeRA"),
        (".lora_embedding_A", "a LoRA of embedding tables"),
        (".hra_u", "HRA"),
        (".fourierft_spectrum", "FourierFT"),
        (".delta_w.", "a low-rank change of another kind"),
    ];
    names.into_iter().find_map(|name| {
        let found = kinds.iter().find(|(mark, _)| name.contains(mark));
        found.map(|(_, kind)| *kind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let parse = |name| {
            let name = TensorName::parse(name, |module| module == "x.ia3")?;
            Some((name.module, name.role, name.adapter))
        };
        use TensorRole as T;
        for (name, module, role, adapter) in [
            ("a.lora_A.weight", "a", T::Down, None),
            ("a.lora_A.default_0.weight", "a", T::Down, Some("default_0")),
            ("a.lora_B.my.style.weight", "a", T::Up, Some("my.style")),
            ("a.lora_B.bias", "a", T::DiffBias, None),
            ("a.lora_B.x.bias", "a", T::DiffBias, Some("x")),
            ("a.lora_magnitude_vector", "a", T::Magnitude, None),
            ("a.lora_magnitude_vector.weight", "a", T::Magnitude, None),
            ("a.lora_magnitude_vector.x", "a", T::Magnitude, Some("x")),
            (
                "a.lora_magnitude_vector.x.weight",
                "a",
                T::Magnitude,
                Some("x"),
            ),
            ("a.to_q_lora.up.weight", "a.to_q", T::Up, None),
            ("x.ia3.weight", "x.ia3", T::Ia3, None),
            ("a.lokr_w1", "a", T::Kron1, None),
        ] {
            assert_eq!(parse(name), Some((module, role, adapter)), "{name}");
        }
        for name in ["a.weight", "lora_A", "a.lora_A.bias", "a.lora_B.x"] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn leftovers_go_wherever_they_stand() {
        for name in [
            "unet._orig_mod.down_blocks.0",
            "_orig_mod.unet.down_blocks.0",
            "unet.down_blocks.0.base_layer",
            "unet.down_blocks.base_layer.0",
            "unet.down_blocks.0",
        ] {
            assert_eq!(without_leftovers(name), "unet.down_blocks.0");
        }
        assert_eq!(
            without_leftovers("lora_unet__orig_mod_a_b"),
            "lora_unet_a_b"
        );
    }
}
