//! The arguments for signing pictures: a chain of certificates and its private key.

use std::path::PathBuf;

use clap::Args;
use sdxl::image::credentials::Signer;

/// The files of a certificate.
#[derive(Args)]
pub(crate) struct CredentialsArgs {
    /// Sign pictures (Content Credentials, C2PA): your chain of certificates, PEM
    #[arg(
        long,
        value_name = "FILE",
        requires = "c2pa_key",
        help_heading = "Output"
    )]
    pub c2pa_certificate: Option<PathBuf>,
    /// The certificate's private key, PKCS #8 PEM
    #[arg(
        long,
        value_name = "FILE",
        requires = "c2pa_certificate",
        help_heading = "Output"
    )]
    pub c2pa_key: Option<PathBuf>,
}

impl CredentialsArgs {
    /// Reads and tries them.
    pub(crate) fn signer(&self) -> sdxl::Result<Option<Signer>> {
        match (&self.c2pa_certificate, &self.c2pa_key) {
            (Some(certificate), Some(key)) => Signer::read(certificate, key).map(Some),
            _ => Ok(None),
        }
    }
}
