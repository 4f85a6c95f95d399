//! Memory that a kernel works in, known before it runs.

/// Memory that a kernel works in, beside its input and its output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    /// Bytes that are freed when it returns.
    pub temporary: usize,
    /// Bytes of each buffer that it holds at the same time. These buffers are kept between calls,
    /// until [`release_scratch`](crate::release_scratch).
    pub scratch: Vec<usize>,
}
