//! The models that have names: which repositories of the hub hold them, at which revision, and under which licence.
//!
//! Revisions are fixed and large files carry the sha256 that the hub publishes for them, so that a name brings the
//! same bytes for ever, whichever mirror they come from.

use crate::Role;

/// A repository of the hub at one commit.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// `ORG/NAME`.
    pub repo: &'static str,
    /// The commit.
    pub revision: &'static str,
    /// The folder inside the repository that holds the files; empty, or ending in a slash.
    pub folder: &'static str,
}

/// One file of an entry.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// Its path below [`Source::folder`].
    pub path: &'static str,
    /// Its size in bytes; rounded where `sha256` is `None`.
    pub bytes: u64,
    /// The checksum of its content. Small files of a repository may go without: git's own hash guards them.
    pub sha256: Option<&'static str>,
}

/// A named model.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What `sameface models pull` calls it.
    pub name: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// The licence of the weights, in one line.
    pub licence: &'static str,
    /// The parts of the stack that it can be.
    pub roles: &'static [Role],
    /// Repositories that hold the very same files, best first.
    pub sources: &'static [Source],
    /// What is needed of them.
    pub files: &'static [File],
    /// Other entries without which it does not work.
    pub needs: &'static [&'static str],
}

impl Entry {
    /// The size of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Other names that people try.
const ALIASES: &[(&str, &str)] = &[("sdxl", "sdxl-base")];

/// The entry of this name.
pub fn entry(name: &str) -> Option<&'static Entry> {
    let alias = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name));
    let name = alias.map_or(name, |(_, name)| name);
    ENTRIES.iter().find(|entry| entry.name.eq_ignore_ascii_case(name))
}

/// The entry that is used for a part of the stack when nothing is said.
pub fn default_for(role: Role) -> &'static Entry {
    // Every role has an entry; a test says so.
    ENTRIES.iter().find(|entry| entry.roles.contains(&role)).unwrap_or(&ENTRIES[0])
}

/// All names, or those that a part of the stack can have, for messages.
pub fn names(role: Option<Role>) -> String {
    let fits = |entry: &&Entry| role.is_none_or(|role| entry.roles.contains(&role));
    ENTRIES.iter().filter(fits).map(|entry| format!("`{}`", entry.name)).collect::<Vec<_>>().join(", ")
}

const fn file(path: &'static str, bytes: u64, sha256: &'static str) -> File {
    File { path, bytes, sha256: Some(sha256) }
}

/// Every named model.
pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "instantid",
        about: "InstantID: the identity adapter and the IdentityNet, for SDXL",
        licence: "Apache-2.0 (https://huggingface.co/InstantX/InstantID); made for antelopev2 faces, whose licence binds you too",
        roles: &[Role::IdentityNet, Role::IpAdapter],
        sources: &[Source {
            repo: "InstantX/InstantID",
            revision: "57b32dfee076092ad2930c71fd6d439c2c3b1820",
            folder: "",
        }],
        files: &[
            File { path: "ControlNetModel/config.json", bytes: 1_380, sha256: None },
            file("ip-adapter.bin", 1_691_134_141, "02b3618e36d803784166660520098089a81388e61a93ef8002aa79a5b1c546e1"),
            file(
                "ControlNetModel/diffusion_pytorch_model.safetensors",
                2_502_139_136,
                "c8127be9f174101ebdafee9964d856b49b634435cf6daa396d3f593cf0bbbb05",
            ),
        ],
        needs: &["antelopev2", "sdxl-base"],
    },
    Entry {
        name: "antelopev2",
        about: "insightface's antelopev2: finds a face and describes it (SCRFD and ArcFace only)",
        licence: "non-commercial research only (https://github.com/deepinsight/insightface#license)",
        roles: &[Role::FaceModels],
        // insightface's own link is dead; both mirrors hold the files of its release, byte for byte.
        sources: &[
            Source {
                repo: "DIAMONIK7777/antelopev2",
                revision: "ba0c3e10f4548361eb9a63265d87ce1140ab5a05",
                folder: "",
            },
            Source {
                repo: "MonsterMMORPG/InstantID_Models",
                revision: "397cafa6d8310e96e302e96528c20a4c92a884f2",
                folder: "models/antelopev2/",
            },
        ],
        files: &[
            file(
                "scrfd_10g_bnkps.onnx",
                16_923_827,
                "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
            ),
            file("glintr100.onnx", 260_665_334, "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf"),
        ],
        needs: &[],
    },
    Entry {
        name: "sdxl-base",
        about: "Stable Diffusion XL 1.0 base, in half precision",
        licence: "CreativeML Open RAIL++-M: commercial use is allowed, some uses are forbidden (https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md)",
        roles: &[Role::Base],
        sources: &[Source {
            repo: "stabilityai/stable-diffusion-xl-base-1.0",
            revision: "462165984030d82259a11f4367a4eed129e94a7b",
            folder: "",
        }],
        files: &[
            file("model_index.json", 609, "6d7b93508390ab91ac5bfbe4aeb4dc2d83f7bb1b05fb069d714b5b0c75f70d44"),
            file(
                "scheduler/scheduler_config.json",
                479,
                "af3e45a949aff8b8341ab8b811429ec03fee857a700a1d9477363e4fff9666e2",
            ),
            file("tokenizer/merges.txt", 524_619, "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"),
            file(
                "tokenizer/special_tokens_map.json",
                472,
                "c4864a9376a8401918425bed71fc14fc0e81f9b59ec45c1cf96cccb2df508eac",
            ),
            file(
                "tokenizer/tokenizer_config.json",
                737,
                "19d7b034cb0cc3ce9766c2231373ab8aa8991fc72e2c8f76558bfaae3de0d563",
            ),
            file("tokenizer/vocab.json", 1_059_962, "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349"),
            file("tokenizer_2/merges.txt", 524_619, "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"),
            file(
                "tokenizer_2/special_tokens_map.json",
                460,
                "f118ab3a983206e4f32583448de6bd6aae4ee21869135cef1f5848a753cdaab6",
            ),
            file(
                "tokenizer_2/tokenizer_config.json",
                725,
                "c9d23941f76a41cbd50eda9290f57be7828f0a7a677939e9ef181f7e12bd1bdf",
            ),
            file(
                "tokenizer_2/vocab.json",
                1_059_962,
                "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349",
            ),
            file("text_encoder/config.json", 565, "39b8b2e4b1949e36969caa425b6c81c68bace99198dd9078ce05d16ad401fe7f"),
            file("text_encoder_2/config.json", 575, "a892d1c3a69a7e9247a24de2bc1d5891e3109a54696e53be20093af671072c34"),
            file("unet/config.json", 1_680, "30ebc70750223e59006f7f2b4e1e6c102570aa19a9c4ae3e1fbe7591332dbae6"),
            file("vae/config.json", 642, "0b331c8ac22ded5f9997a144a575c1d113d6169aff262c353f39015bd24a6264"),
            file(
                "vae/diffusion_pytorch_model.fp16.safetensors",
                167_335_342,
                "bcb60880a46b63dea58e9bc591abe15f8350bde47b405f9c38f4be70c6161e68",
            ),
            file(
                "text_encoder/model.fp16.safetensors",
                246_144_152,
                "660c6f5b1abae9dc498ac2d21e1347d2abdb0cf6c0c0c8576cd796491d9a6cdd",
            ),
            file(
                "text_encoder_2/model.fp16.safetensors",
                1_389_382_176,
                "ec310df2af79c318e24d20511b601a591ca8cd4f1fce1d8dff822a356bcdb1f4",
            ),
            file(
                "unet/diffusion_pytorch_model.fp16.safetensors",
                5_135_149_760,
                "83e012a805b84c7ca28e5646747c90a243c65c8ba4f070e2d7ddc9d74661e139",
            ),
        ],
        needs: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        for role in Role::ALL {
            assert!(default_for(role).roles.contains(&role), "{role:?}");
        }
        for entry in ENTRIES {
            assert!(entry.needs.iter().all(|name| super::entry(name).is_some()), "{}", entry.name);
            assert!(entry.sources.iter().all(|source| source.revision.len() == 40 && source.repo.contains('/')));
            for file in entry.files {
                assert!(file.sha256.is_none_or(|sum| sum.len() == 64), "{}", file.path);
            }
        }
        assert_eq!(entry("InstantID").map(|entry| entry.name), Some("instantid"));
        assert!(entry("nonsense").is_none());
    }
}
