//! When a device fails: what was finished is kept, another device goes on where that is left open, and a device that is
//! too small is answered with what would need less.

use crate::event::Observer;
use crate::generate::{Output, Taker};
use crate::plan::random_seed;
use crate::request::DeviceChoice;
use crate::session::Session;
use crate::{Error, Event, Request, Result, vram};
use tensor::Device;

/// More devices than a machine has.
const MOST: usize = 64;

impl Session {
    /// As [`Session::generate`], but hands each picture over as soon as it is finished, with the plan that made it, so
    /// that stopping loses only the one at work. The output then holds no pictures. Where a GPU is lost that nobody
    /// named, the pictures that are not finished are made by the next one or by the CPU.
    ///
    /// # Errors
    /// As [`crate::generate`], and whatever `take` says.
    pub fn generate_each(&mut self, request: &Request, observe: &mut Observer, take: &mut Taker) -> Result<Output> {
        let seed = request.seed.unwrap_or_else(random_seed);
        let mut done = 0;
        for _ in 0..MOST {
            let before = done;
            let mut counted = |picture, plan: &_| {
                take(picture, plan)?;
                done += 1;
                Ok(())
            };
            let mut shifted = |event| match event {
                Event::Step { image, together, step, steps, .. } => {
                    observe(Event::Step { image: image + before, together, images: request.count, step, steps })
                }
                other => observe(other),
            };
            let made = self.attempt(&request.rest(seed, before), &mut shifted, &mut counted);
            match made {
                Ok(mut output) => {
                    output.plan.seeds = (0..request.count as u64).map(|i| seed + i).collect();
                    return Ok(output);
                }
                Err(lost) if lost.is_lost_device() && request.device == DeviceChoice::Auto => {
                    self.drop_all();
                    // What only a GPU can do, such as f16, ends here.
                    if crate::plan::Compute::choose(request.device, request.precision, 0).is_err() {
                        return Err(lost);
                    }
                    let again = format!("{lost}; the pictures that are not finished are made without it");
                    if observe(Event::Note(again)).is_break() {
                        return Err(Error::Cancelled);
                    }
                }
                Err(error) => {
                    // Networks on a device that failed are of no use to a later request.
                    if error.is_lost_device() {
                        self.drop_all();
                    }
                    return Err(self.advised(error, request));
                }
            }
        }
        Error::refused("one device after the other failed; look at `nvidia-smi` and the system's log")
    }

    /// An error with what can be done about it.
    fn advised(&self, error: Error, request: &Request) -> Error {
        let Some(device) = self.device().filter(|device| *device != Device::Cpu && error.is_out_of_memory()) else {
            return match (error.is_lost_device(), request.device) {
                (true, DeviceChoice::Cuda(_) | DeviceChoice::Halves(..)) => Error::Machine(format!(
                    "{error}; start again, with --device auto to let another device go on or with --device cpu; `nvidia-smi` and the system's log may tell why"
                )),
                _ => error,
            };
        };
        // Somebody else took memory meanwhile, or the work needs more than was planned: less may be taken, and so much.
        let held = tensor::memory_use_of(&device).map_or(0, |ours| ours.used + ours.free) as u64;
        let less = vram::cap_for(held / 10 * 8) >> 20;
        let fewer = if request.count > 1 { "fewer pictures at once, " } else { "" };
        Error::Machine(format!(
            "{error}; here: --vram {less}M lets more of the networks wait in the machine's memory, {fewer}a smaller --size and --device cpu need less"
        ))
    }
}
