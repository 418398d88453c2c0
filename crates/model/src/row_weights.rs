//! The weights of a table's rows: those in the same formats are there once, all of them in memory or one layer at a
//! time.

use std::ops::ControlFlow;
use std::sync::{Arc, mpsc};
use std::thread;

use half::bf16;
use microscale_tensor::{Backend, BlockFormat};

use crate::weights::{Ends, Layer, Reader, TensorSource, block_format};
use crate::{Error, PackedSize, Recipe, Role};

/// Where the rows' weights come from.
pub(crate) struct Origin<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) source: &'a (dyn TensorSource + Sync),
    pub(crate) recipes: &'a [Recipe],
}

/// The weights of some rows.
pub(crate) struct RowWeights<B: Backend> {
    /// The rows, as they index the recipes.
    pub(crate) rows: Vec<usize>,
    pub(crate) embedding: B::Activation,
    pub(crate) norm: Vec<bf16>,
    heads: Vec<B::Weight>,
    /// By position in `rows`, the head and the layers among those of different formats.
    kinds: Vec<[usize; 2]>,
    /// Of each kind of layers, a row that has it.
    layer_rows: Vec<usize>,
    /// `[layer][kind]`, if they are all in memory.
    resident: Option<Vec<Vec<Arc<Layer<B>>>>>,
}

/// Sorts rows by the formats of their weights: `kinds[i]` of row i, and one row of each kind.
fn kinds(rows: &[usize], recipes: &[Recipe], roles: &[Role]) -> (Vec<usize>, Vec<usize>) {
    let formats = |row: usize| -> Vec<Option<BlockFormat>> {
        roles.iter().map(|&role| block_format(&recipes[row], role)).collect()
    };
    let mut of_kind: Vec<usize> = Vec::new();
    let kinds = rows.iter().map(|&row| {
        of_kind.iter().position(|&other| formats(other) == formats(row)).unwrap_or_else(|| {
            of_kind.push(row);
            of_kind.len() - 1
        })
    });
    let kinds = kinds.collect();
    (kinds, of_kind)
}

const LAYER_ROLES: [Role; 2] = [Role::ProjectionWeight, Role::MlpWeight];

/// Bytes that the weights of rows take.
pub(crate) struct WeightBytes {
    /// With every layer in memory.
    pub(crate) resident: usize,
    /// With one layer at work and the next one made.
    pub(crate) streamed: usize,
}

impl<'a, B: Backend> Origin<'a, B> {
    fn reader(&self, row: usize) -> Reader<'a, B> {
        Reader { backend: self.backend, source: self.source, recipe: &self.recipes[row] }
    }

    /// How much memory the weights of `rows` take.
    pub(crate) fn bytes(&self, rows: &[usize]) -> WeightBytes {
        let config = self.source.config();
        let size = |row: &usize| PackedSize::of(config, &self.recipes[*row]);
        let layers: usize = kinds(rows, self.recipes, &LAYER_ROLES).1.iter().map(|row| size(row).layer_bytes).sum();
        let heads: usize =
            kinds(rows, self.recipes, &[Role::HeadWeight]).1.iter().map(|row| size(row).head_bytes).sum();
        let ends = heads + rows.first().map_or(0, |row| size(row).other_bytes);
        // A matrix is read whole before it is packed.
        let reading = 2 * rows.first().map_or(0, |row| size(row).largest_matrix);
        let resident = ends + layers + reading;
        WeightBytes { resident, streamed: ends + 2 * layers / config.layers.max(1) + reading }
    }

    /// Reads what `rows` need; the layers too if they are to stay in memory.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub(crate) fn load(&self, rows: &[usize], resident: bool) -> Result<RowWeights<B>, Error> {
        let (layer_kinds, layer_rows) = kinds(rows, self.recipes, &LAYER_ROLES);
        let (head_kinds, head_rows) = kinds(rows, self.recipes, &[Role::HeadWeight]);
        let Ends { embedding, norm, head } = self.reader(head_rows[0]).ends()?;
        let mut heads = vec![head];
        for &row in &head_rows[1..] {
            heads.push(self.reader(row).ends()?.head);
        }
        let layers = 0..self.source.config().layers;
        let resident = resident.then(|| layers.map(|i| self.layer(i, &layer_rows)).collect()).transpose()?;
        let kinds = head_kinds.into_iter().zip(layer_kinds).map(|(head, layer)| [head, layer]).collect();
        Ok(RowWeights { rows: rows.to_vec(), embedding, norm, heads, kinds, layer_rows, resident })
    }

    /// Layer `index` in every kind.
    fn layer(&self, index: usize, layer_rows: &[usize]) -> Result<Vec<Arc<Layer<B>>>, Error> {
        layer_rows.iter().map(|&row| self.reader(row).layer(index).map(Arc::new)).collect()
    }
}

impl<B: Backend> RowWeights<B> {
    /// Whether every layer is in memory.
    pub(crate) fn is_resident(&self) -> bool {
        self.resident.is_some()
    }

    /// The head of the row at `position`.
    pub(crate) fn head(&self, position: usize) -> &B::Weight {
        &self.heads[self.kinds[position][0]]
    }

    /// The layer of the row at `position` among those of all kinds.
    pub(crate) fn own<'l>(&self, layers: &'l [Arc<Layer<B>>], position: usize) -> &'l Layer<B> {
        &layers[self.kinds[position][1]]
    }

    /// Hands `work` every layer in all its kinds, in order, until it asks to stop. Layers that are not in memory are
    /// read by a thread of their own, one ahead.
    ///
    /// # Errors
    /// A tensor that cannot be read; what `work` fails with.
    pub(crate) fn each_layer(
        &self,
        origin: &Origin<'_, B>,
        mut work: impl FnMut(&[Arc<Layer<B>>]) -> Result<ControlFlow<()>, Error>,
    ) -> Result<ControlFlow<()>, Error> {
        if let Some(layers) = &self.resident {
            for layer in layers {
                if work(layer)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            return Ok(ControlFlow::Continue(()));
        }
        thread::scope(|scope| {
            let (send, receive) = mpsc::sync_channel(0);
            scope.spawn(move || {
                for index in 0..origin.source.config().layers {
                    if send.send(origin.layer(index, &self.layer_rows)).is_err() {
                        break;
                    }
                }
            });
            for layer in receive {
                if work(&layer?)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }
}
