//! `sameface compare`.

use std::path::PathBuf;

use clap::Args;

use super::values::{finite, seed, whole};
use super::{MachineArgs, ModelFileArgs, PictureArgs, ShardArg};

#[derive(Args, Debug)]
#[command(after_long_help = AFTER)]
pub(crate) struct CompareArgs {
    /// Somebody: a photo, an identity saved by `sameface faces --save`, a folder with several pictures of one person (the
    /// first by name, or a saved identity, is the given one; likeness is also measured by the others), or cast:SEED for a
    /// drawn character. May be given several times.
    #[arg(long, value_name = "PHOTO|IDENTITY|FOLDER|cast:SEED", help_heading = "What is compared")]
    pub(crate) face: Vec<PathBuf>,

    /// Adds so many characters that no training has seen: seeds 1000001, 1000005, 1000009 and so on, no two of them
    /// look-alikes by birth.
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "What is compared")]
    pub(crate) cast_faces: Option<usize>,

    /// What the pictures show. May be given several times.
    #[arg(long, value_name = "TEXT", help_heading = "What is compared")]
    pub(crate) prompt: Vec<String>,

    /// Adds so many prompts whose content is known, so that text agreement can be measured: always the same ones, the
    /// eight styles in turn.
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "What is compared")]
    pub(crate) cast_prompts: Option<usize>,

    /// Another photo of the person of the one --face, to measure likeness by (SimGT). Characters have theirs by themselves;
    /// several people take a folder each.
    #[arg(long, value_name = "PHOTO", help_heading = "What is compared")]
    pub(crate) other: Vec<PathBuf>,

    /// Gives each face only so many of the prompts, in turn.
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "What is compared")]
    pub(crate) per_face: Option<usize>,

    /// adapter, identitynet, instantid. The controls are always run: text alone, nobody's and another person's
    /// identity. [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "What is compared")]
    pub(crate) methods: Vec<String>,

    /// Runs each method at each of these weights and draws curve.png. For InstantID it is the adapter's weight, while
    /// IdentityNet keeps its own. [default: --ip-adapter-scale and --identitynet-scale alone]
    #[arg(long, value_name = "X,X,...", value_delimiter = ',', value_parser = finite, allow_negative_numbers = true, help_heading = "What is compared")]
    pub(crate) scales: Vec<f64>,

    /// Among how many people the judge has to find the right one: unseen characters fill up the faces given.
    /// [default: 40 for characters, the faces given for photos]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "What is compared")]
    pub(crate) among: Option<usize>,

    /// A folder with identity.onnx, an encoder of aligned faces that steers none of the pictures, and optionally
    /// content.onnx with judge.json. [default: the built-in one, which knows drawn characters]
    #[arg(long, value_name = "FOLDER", help_heading = "What is compared")]
    pub(crate) judge: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) picture: PictureArgs,

    /// Seed of the first row; each row of faces and prompts has its own, which all methods share. [default: 1]
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true, help_heading = "The picture")]
    pub(crate) seed: Option<u64>,

    #[command(flatten)]
    pub(crate) models: ModelFileArgs,

    #[command(flatten)]
    pub(crate) machine: MachineArgs,

    /// A folder for index.html, table.json, grid.png, curve.png and all pictures. Each picture is kept when it is finished:
    /// the same command with the same folder goes on where it was stopped, and with more methods or weights adds to it.
    #[arg(short, long, value_name = "FOLDER", help_heading = "The result")]
    pub(crate) output: PathBuf,

    /// Makes only one of several equal parts, such as 1/4, so that several machines share the work.
    #[arg(long, value_name = "I/N", help_heading = "The result")]
    pub(crate) shard: Option<ShardArg>,

    /// Takes what the same comparison has made in another folder. May be given several times; what is then still missing
    /// is made.
    #[arg(long, value_name = "FOLDER", help_heading = "The result")]
    pub(crate) from: Vec<PathBuf>,

    /// Prints the content of table.json on stdout.
    #[arg(long, help_heading = "The result")]
    pub(crate) json: bool,
}

const AFTER: &str = "\
Examples:
  sameface compare --face cast:1000001 --prompt \"a film noir portrait of a person in a hat\" -o out
  sameface compare --cast-faces 8 --cast-prompts 8 -o out
  sameface compare --face people/ada --face people/bob --prompt \"a sailor\" --judge buffalo -o out
  sameface compare --face ada.jpg --other ada2.jpg --other ada3.jpg --prompt \"a sailor\" --judge buffalo -o ada

A curve over the adapter's weight, without and with IdentityNet (curve.png):
  sameface compare --cast-faces 24 --cast-prompts 8 --per-face 2 --methods adapter,instantid \
      --scales 0,0.25,0.5,0.75,1,1.25,1.5 -o curve

A long comparison on two machines, joined on one:
  sameface compare --cast-faces 240 --cast-prompts 8 --among 240 --shard 1/2 -o a
  sameface compare --cast-faces 240 --cast-prompts 8 --among 240 --shard 2/2 -o b
  sameface compare --cast-faces 240 --cast-prompts 8 --among 240 --from b -o a

What is written: index.html (the page: one file, to be passed on), grid.png, curve.png with --scales, table.json, \
results.jsonl (a line for each picture), and every picture in pictures/ with its whole plan.

What the columns measure. All but seconds come from the judge, which steers nothing: identity from its face encoder, \
text and keypoints from its content network. Beside each stands what the people's own pictures reach.
  found       share in which the stack's detector finds a face; in the others the keypoints asked for are used
  SimRef      similarity to the given picture: the cosine of the judge's embeddings, 0 for strangers
  SimGT       mean similarity to other pictures of the person; left out where there are none
  copy-paste  SimRef - SimGT: how much nearer to the given picture than to others of the same person
  top-1       share of pictures whose nearest person among all at hand is the right one
  text        share of what the prompt asks for (style, clothing, background and so on) that is read in the picture;
              for --cast-prompts only, as nothing is known of what free text asks for
  keypoints   mean distance of the keypoints read from those asked for, over the distance of the eyes
  stranger    similarity to the person whose embedding was put in place

Controls are always there: the prompt alone; InstantID with an empty identity; InstantID with another person's identity.";
