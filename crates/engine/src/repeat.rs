//! Work that is done again and again on tensors of the same shapes, such as a denoising step: on a GPU its second time is
//! recorded, and later times replay the record, so that the device waits for no launch.

use crate::{Error, Result};
use tensor::{Device, Recording, Tensor};

/// One such piece of work; what it reads beside its inputs must not change.
#[derive(Default)]
pub(crate) struct Repeated(State);

#[derive(Default)]
enum State {
    #[default]
    New,
    /// Done once: kernels are there, algorithms chosen.
    Warm,
    Recorded {
        inputs: Vec<Tensor>,
        recording: Box<Recording>,
        result: Tensor,
    },
    /// Not recorded: on the CPU, or for the reason given.
    Plain(Option<String>),
}

impl Repeated {
    /// Why the work is not replayed from a record, for measuring; none where it is, and before its second time.
    pub(crate) fn obstacle(&self) -> Option<String> {
        match &self.0 {
            State::Plain(why) => Some(why.clone().unwrap_or_else(|| "the CPU needs none".into())),
            _ => None,
        }
    }

    /// Whether there is a record, which keeps memory.
    pub(crate) fn is_recorded(&self) -> bool {
        matches!(self.0, State::Recorded { .. })
    }

    /// From now on does without a record.
    pub(crate) fn give_up(&mut self) {
        self.0 = State::Plain(Some("memory is too short for a record".into()));
    }

    /// The result of `work` on `inputs`. It lives until the next call, which may write to its memory.
    pub(crate) fn call(
        &mut self,
        device: Device,
        inputs: &[&Tensor],
        work: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if let State::Warm = self.0 {
            self.0 = record(device, inputs, &work)?;
        }
        if let State::Recorded { inputs: own, recording, result } = &self.0
            && own.iter().map(Tensor::shape).eq(inputs.iter().map(|x| x.shape()))
        {
            for (own, given) in own.iter().zip(inputs) {
                own.overwrite(given)?;
            }
            recording.replay()?;
            return Ok(result.clone());
        }
        if let State::New = self.0 {
            self.0 = if device == Device::Cpu { State::Plain(None) } else { State::Warm };
        }
        work(&inputs.iter().map(|x| (*x).clone()).collect::<Vec<_>>())
    }
}

/// Records the work on inputs of its own, where it can be recorded.
fn record(device: Device, inputs: &[&Tensor], work: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<State> {
    let own = inputs.iter().map(|x| Tensor::zeros(&device, x.dtype(), x.shape()));
    let own = own.collect::<tensor::Result<Vec<_>>>()?;
    Ok(match Recording::new::<Error>(&device, || Ok(vec![work(&own)?])) {
        Ok(Some((recording, results))) => match results.into_iter().next() {
            Some(result) => State::Recorded { inputs: own, recording: Box::new(recording), result },
            None => State::Plain(None),
        },
        Ok(None) => State::Plain(None),
        // Whatever is wrong with the work itself shows when it is done without a record.
        Err(why) => State::Plain(Some(why.to_string())),
    })
}
