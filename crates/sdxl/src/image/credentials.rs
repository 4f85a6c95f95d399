//! Content Credentials: a C2PA manifest inside a picture's file, signed with the user's own
//! certificate (feature `c2pa`).
//!
//! The manifest says one thing: that a trained model made this file, or made it out of another
//! picture, and with which program. Any later change of a byte breaks the signature; texts
//! and XMP are covered too, so it is added last. No time-stamp service is asked: nothing here
//! uses the network. Specification: C2PA 2, <https://spec.c2pa.org>.

use std::io::Cursor;
use std::path::Path;

use ::c2pa::validation_results::ValidationState;
use ::c2pa::{
    BoxedSigner, Builder, BuilderIntent, ClaimGeneratorInfo, Context, DigitalSourceType, Reader,
    SigningAlg, create_signer,
};

use super::{Encoding, Format, Pixels, Texts};
use crate::error::{Error, Result};
use crate::files::read_bounded;

/// Bytes that a file of certificates or of a key may have.
const MAX_PEM: u64 = 1 << 20;
/// All that C2PA allows. A key fits one curve, or is RSA.
const ALGORITHMS: [SigningAlg; 5] = [
    SigningAlg::Es256,
    SigningAlg::Es384,
    SigningAlg::Es512,
    SigningAlg::Ed25519,
    SigningAlg::Ps256,
];

/// Signs files with a certificate's key.
pub struct Signer {
    signer: BoxedSigner,
}

impl Signer {
    /// Reads a chain of certificates (PEM, the signing one first, without the root) and its private key
    /// (PEM, PKCS #8), and tries them on a picture of one pixel.
    ///
    /// # Errors
    /// Files that cannot be read or are no PEM, a key that is not the certificate's, and a certificate that
    /// C2PA does not allow for signing: expired, self-signed, or for another use than
    /// signatures of documents.
    pub fn read(certificate: &Path, key: &Path) -> Result<Signer> {
        let chain = read_bounded(certificate, MAX_PEM)?;
        let private = read_bounded(key, MAX_PEM)?;
        if !holds(&chain, "BEGIN CERTIFICATE") {
            return Err(Error::file(
                certificate,
                "this is no chain of certificates in PEM (-----BEGIN CERTIFICATE-----)",
            ));
        }
        if !holds(&private, "BEGIN PRIVATE KEY") {
            return Err(Error::file(
                key,
                "this is no private key in PKCS #8 PEM (-----BEGIN PRIVATE KEY-----); \
                 `openssl pkcs8 -topk8 -nocrypt` makes one of other kinds of key",
            ));
        }
        let signer = ALGORITHMS
            .into_iter()
            .filter_map(|algorithm| {
                create_signer::from_keys(&chain, &private, algorithm, None).ok()
            })
            .find(|signer| signer.sign(b"a trial").is_ok())
            .ok_or_else(|| {
                Error::file(
                    key,
                    "C2PA signs with EC (P-256, P-384, P-521), Ed25519 and RSA keys; this is none",
                )
            })?;
        let signer = Signer { signer };
        let pixel = Pixels::new(1, 1, 3, vec![0; 3]);
        let trial = Encoding::new(Format::Png, None)?.encode(&pixel, &Texts::default())?;
        let refused = |why: String| {
            let why = format!("signatures made with it do not hold: {why}");
            Error::file(certificate, why)
        };
        let signed = signer
            .sign(Format::Png, &trial.bytes, false)
            .map_err(|e| refused(e.to_string()))?;
        match Credentials::of(Format::Png, &signed) {
            Some(credentials) if credentials.valid => Ok(signer),
            Some(credentials) => Err(refused(credentials.problems.join("; "))),
            None => Err(refused("nothing was signed".into())),
        }
    }

    /// The file of a picture with a signed manifest in it. `from_a_picture`: whether it was
    /// made out of another picture.
    ///
    /// # Errors
    /// The error that the signing library reports.
    pub fn sign(&self, format: Format, file: &[u8], from_a_picture: bool) -> Result<Vec<u8>> {
        let source = match from_a_picture {
            true => DigitalSourceType::CompositeWithTrainedAlgorithmicMedia,
            false => DigitalSourceType::TrainedAlgorithmicMedia,
        };
        let mut program = ClaimGeneratorInfo::new("sdxl");
        program.set_version(env!("CARGO_PKG_VERSION"));
        let mut builder = Builder::from_context(Context::new());
        builder.set_claim_generator_info(program);
        builder.set_intent(BuilderIntent::Create(source));
        let mut out = Cursor::new(Vec::new());
        builder
            .sign(
                self.signer.as_ref(),
                mime(format),
                &mut Cursor::new(file),
                &mut out,
            )
            .map_err(|e| Error::machine(format!("the picture was not signed: {e}")))?;
        Ok(out.into_inner())
    }
}

/// The statements of a file's C2PA manifest.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Credentials {
    /// The program that wrote it.
    pub generator: Option<String>,
    /// The signer: the certificate's organisation, or else its common name. Whether the signer is
    /// to be trusted is not looked up.
    pub signed_by: Option<String>,
    /// Whether signature and file belong together.
    pub valid: bool,
    /// Why not, in C2PA's words.
    pub problems: Vec<String>,
}

impl Credentials {
    /// Reads the manifest of a PNG, JPEG or WebP. `None` where there is none that can be read.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(path: &Path) -> Result<Option<Credentials>> {
        Ok(match Format::of_file(path)? {
            None => None,
            Some(format) => {
                let file = read_bounded(path, super::read::MAX_FILE)?;
                Credentials::of(format, &file)
            }
        })
    }

    fn of(format: Format, file: &[u8]) -> Option<Credentials> {
        let reader = Reader::from_context(Context::new())
            .with_stream(mime(format), Cursor::new(file))
            .ok()?;
        let manifest = reader.active_manifest()?;
        let generator = manifest.claim_generator_info.as_ref().and_then(|list| {
            let program = list.first()?;
            Some(match &program.version {
                Some(version) => format!("{} {version}", program.name),
                None => program.name.clone(),
            })
        });
        // That we have no list of trusted roots is no fault of the file.
        let problems = reader
            .validation_status()
            .unwrap_or_default()
            .iter()
            .filter(|status| status.code() != "signingCredential.untrusted")
            .map(|status| match status.explanation() {
                Some(more) => format!("{} ({more})", status.code()),
                None => status.code().to_string(),
            })
            .collect();
        Some(Credentials {
            generator,
            signed_by: manifest.issuer().or_else(|| manifest.common_name()),
            valid: reader.validation_state() != ValidationState::Invalid,
            problems,
        })
    }
}

fn holds(pem: &[u8], what: &str) -> bool {
    pem.windows(what.len()).any(|w| w == what.as_bytes())
}

fn mime(format: Format) -> &'static str {
    match format {
        Format::Png => "image/png",
        Format::Jpeg => "image/jpeg",
        Format::Webp => "image/webp",
    }
}
